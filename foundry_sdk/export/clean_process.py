"""Reads an exported model as anyone would: with transformers, and nothing of foundry_sdk.

Run as ``python -I clean_process.py REQUEST``. REQUEST is a JSON file::

    folder      the exported model
    tensors     {name: shape} of every tensor there must be
    prompts     lists of token ids
    texts       texts, or none without a tokenizer
    custom_code whether the folder brings its own modelling file, to be trusted
    new_tokens  how many tokens to continue each prompt with, greedily
    logits      file to write float32 logits to, one tensor per prompt, "0", "1" …
    answer      file to write {"text_ids": [...], "continuations": [...], "versions": {...}} to

Anything unexpected ends it with a message and exit status 1.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> None:
    """Check the files, load the model, and write what it says."""
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(request["folder"])
    check_tensors(folder, request["tensors"])
    torch.manual_seed(0)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=request["custom_code"],
        output_loading_info=True,
    )
    model, loading = loaded
    # a tied head is no tensor of its own; transformers 4 lists it as missing, 5 does not
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    missing = {name for name in loading["missing_keys"] if not (tied and _is_head(model, name))}
    for what, names in (
        ("not in the files", missing),
        ("not in the model", loading["unexpected_keys"]),
        ("of another shape", loading["mismatched_keys"]),
    ):
        if names:
            sys.exit(f"tensors {what}: {sorted(map(str, names))[:5]}")
    model.eval()
    text_ids = []
    if request["texts"]:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        text_ids = [list(tokenizer(text)["input_ids"]) for text in request["texts"]]
    logits, continuations = {}, []
    with torch.no_grad():
        for number, prompt in enumerate(request["prompts"]):
            ids = torch.tensor([prompt])
            logits[str(number)] = model(input_ids=ids).logits[0].float().contiguous()
            continuations.append(greedy(model, ids, request["new_tokens"]))
    save_file(logits, request["logits"])
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    answer = {"text_ids": text_ids, "continuations": continuations, "versions": versions}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def check_tensors(folder: Path, expected: dict[str, list[int]]) -> None:
    """Check that each expected tensor is in the files once, with its shape, and none besides."""
    from safetensors import safe_open

    found: dict[str, list[int]] = {}
    places: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                if name in found:
                    sys.exit(f"tensor {name} is in {places[name]} and in {path.name}")
                found[name] = list(file.get_slice(name).get_shape())
                places[name] = path.name
    if found != expected:
        wrong = {n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)}
        name = min(wrong)
        sys.exit(
            f"{len(wrong)} tensors are not as they should be, such as {name}: "
            f"{found.get(name)} in the files, {expected.get(name)} expected"
        )
    index = folder / "model.safetensors.index.json"
    if index.exists() and json.loads(index.read_text())["weight_map"] != places:
        sys.exit("the index does not say where the tensors are")


def greedy(model: Any, ids: Any, new_tokens: int) -> list[int]:  # noqa: ANN401 - any architecture
    """Return the most probable continuation of ``ids`` (1, T), by the model's own ``generate``."""
    written = model.generate(
        ids,
        attention_mask=ids.new_ones(ids.shape),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=0,
        eos_token_id=None,
    )
    continuation: list[int] = written[0, ids.shape[1] :].tolist()
    return continuation


def _is_head(model: Any, name: str) -> bool:  # noqa: ANN401 - any architecture
    head = model.get_output_embeddings()
    return any(module is head and name == f"{at}.weight" for at, module in model.named_modules())


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
