"""Reads an exported model as anyone would: with transformers, and nothing of foundry_sdk.

Run as ``python -I clean_process.py REQUEST``. REQUEST is a JSON file::

    folder      the exported model
    tensors     {name: shape} of every tensor there must be
    prompts     lists of token ids
    texts       texts, or none without a tokenizer
    base        the model that adapters in the folder belong to, or null
    seq2seq     whether it is an encoder-decoder
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
    from transformers import AutoTokenizer

    folder = Path(request["folder"])
    check_tensors(folder, request["tensors"])
    torch.manual_seed(0)
    model = load(folder, request).eval()
    text_ids = []
    if request["texts"]:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        text_ids = [list(tokenizer(text)["input_ids"]) for text in request["texts"]]
    logits, continuations = {}, []
    with torch.no_grad():
        for number, prompt in enumerate(request["prompts"]):
            ids = torch.tensor([prompt])
            inputs = {"input_ids": ids}
            if request["seq2seq"]:
                start = model.config.decoder_start_token_id
                inputs["decoder_input_ids"] = torch.tensor(
                    [[start, *prompt[: request["new_tokens"]]]]
                )
            logits[str(number)] = model(**inputs).logits[0].float().contiguous()
            continuations.append(greedy(model, ids, request["new_tokens"]))
    save_file(logits, request["logits"])
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    answer = {"text_ids": text_ids, "continuations": continuations, "versions": versions}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def load(folder: Path, request: dict[str, Any]) -> Any:  # noqa: ANN401 - any architecture
    """Load the model; any tensor too many or too few ends the process."""
    import torch
    import transformers

    auto = "AutoModelForSeq2SeqLM" if request["seq2seq"] else "AutoModelForCausalLM"
    model, loading = getattr(transformers, auto).from_pretrained(
        request["base"] or folder,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=request["custom_code"],
        output_loading_info=True,
    )
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
    if request["base"] is None:
        return model
    from peft import PeftModel, get_peft_model_state_dict

    adapted = PeftModel.from_pretrained(model, folder)
    own = {name: list(value.shape) for name, value in get_peft_model_state_dict(adapted).items()}
    if own != request["tensors"]:
        sys.exit(f"peft knows other adapters: {sorted(own)[:5]}")
    return adapted


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
        input_ids=ids,
        attention_mask=ids.new_ones(ids.shape),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=0,
        eos_token_id=None,
    )
    begun = 1 if model.config.is_encoder_decoder else ids.shape[1]
    continuation: list[int] = written[0, begun:].tolist()
    return continuation


def _is_head(model: Any, name: str) -> bool:  # noqa: ANN401 - any architecture
    head = model.get_output_embeddings()
    return any(module is head and name == f"{at}.weight" for at, module in model.named_modules())


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
