"""Proves that an exported model is the trained one: a clean process reads the very files."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor

from foundry_sdk.batch import Batch
from foundry_sdk.data.finetuning.chatml import CHATML, CHATML_JINJA
from foundry_sdk.errors import ExportError
from foundry_sdk.models.huggingface.seq2seq import HFSeq2Seq
from foundry_sdk.models.language_model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS: Final = (
    "The capital of France is",
    "def add(a, b):\n    return",
    "1, 2, 3, 4, 5,",
)
NEW_TOKENS: Final = 16
_LONGEST: Final = 256
TOLERANCE: Final = 1e-4
"""Largest difference of a logit, as a share of the largest logit."""
ROUNDED_TOLERANCE: Final = 2e-2
"""The same where weights were multiplied by a factor and rounded to 16 bits afterwards."""


@attrs.frozen(kw_only=True)
class Certificate:
    """What was exported and how near it is to the trained model.

    Attributes:
        architecture: class of transformers that loads it.
        precision: of the files.
        parameters: numbers in the files.
        tensors: how many there are; each was found once, with its shape, and none besides.
        prompts: token ids whose logits and continuation were compared.
        max_abs_difference: largest difference of any logit.
        logit_scale: largest logit.
        tolerance: allowed ratio of the two.
        greedy_tokens: tokens of greedy continuation that were compared and are equal.
        ties: prompts whose continuation parted where our two best logits were equally good.
        versions: of the packages in the clean process.
        sha256: of every exported file.
        mpt: the whole spec of the MPT that was exported, from which ``mpt_causal_lm`` goes on;
            None of other models.
        chat_template: ``chatml`` where the tokenizer's files have the template that runs learn
            chats in if the tokenizer has none; None = its own, or none.
    """

    architecture: str
    precision: str
    parameters: int
    tensors: int
    prompts: tuple[tuple[int, ...], ...]
    max_abs_difference: float
    logit_scale: float
    tolerance: float
    greedy_tokens: int
    ties: int
    versions: Mapping[str, str]
    sha256: Mapping[str, str]
    mpt: Mapping[str, Any] | None = None
    chat_template: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return attrs.asdict(self)


def learned_template(tokenizer: "PreTrainedTokenizerBase | None") -> str | None:
    """Return ``chat_template`` of a certificate."""
    own = None if tokenizer is None else tokenizer.chat_template
    return CHATML if own == CHATML_JINJA else None


@attrs.frozen(kw_only=True)
class Comparison:
    """The part of a certificate that comes from comparing; see there."""

    prompts: tuple[tuple[int, ...], ...]
    max_abs_difference: float
    logit_scale: float
    greedy_tokens: int
    ties: int
    versions: Mapping[str, str]


def compare(
    model: LanguageModel,
    folder: Path,
    *,
    tensors: Mapping[str, list[int]],
    tokenizer: "PreTrainedTokenizerBase | None",
    tolerance: float,
    custom_code: bool = False,
    base: Path | None = None,
) -> Comparison:
    """Compare the files in ``folder`` with ``model``, in a process that knows neither.

    Args:
        model: the trained one, in evaluation mode, float32 values as in the files.
        folder: the exported files.
        tensors: name and shape of each tensor that must be in them.
        tokenizer: of the run, if any; the exported one must make the same ids.
        tolerance: allowed difference of logits, as a share of the largest.
        custom_code: whether the folder's own modelling file is to be used.
        base: where ``folder`` holds adapters, the model that they belong to.

    Raises:
        ExportError: the files cannot be loaded, or say something else than the model.
    """
    prompts = _prompts(model, tokenizer)
    texts = TEXTS if tokenizer is not None else ()
    logits, answer = _run_clean_process(
        folder,
        {
            "tensors": dict(tensors),
            "prompts": prompts,
            "texts": texts,
            "custom_code": custom_code,
            "seq2seq": isinstance(model, HFSeq2Seq),
            "base": None if base is None else str(base.resolve()),
        },
    )
    if tokenizer is not None:
        for text, theirs in zip(TEXTS, answer["text_ids"], strict=True):
            ours = list(tokenizer(text)["input_ids"])
            if ours != theirs:
                raise ExportError(f"the exported tokenizer reads {text!r} as {theirs}, not {ours}")
    difference = scale = 0.0
    greedy_tokens = ties = 0
    with torch.no_grad():
        for number, prompt in enumerate(prompts):
            beginning = _beginning(model, prompt)
            expected = _logits(model, prompt, beginning)
            theirs = logits[str(number)]
            if theirs.shape != expected.shape:
                raise ExportError(f"logits of shape {tuple(theirs.shape)}, not {expected.shape}")
            difference = max(difference, float((theirs - expected).abs().max()))
            scale = max(scale, float(expected.abs().max()))
        if not difference <= tolerance * scale:  # false for NaN too
            raise ExportError(
                f"logits of the exported model differ by up to {difference:.3g}, which is more "
                f"than {tolerance:g} of the largest ({scale:.3g})"
            )
        for prompt, continuation in zip(prompts, answer["continuations"], strict=True):
            same, tie = _agreement(model, prompt, continuation, margin=2 * tolerance * scale)
            greedy_tokens += same
            ties += tie
    return Comparison(
        prompts=tuple(map(tuple, prompts)),
        max_abs_difference=difference,
        logit_scale=scale,
        greedy_tokens=greedy_tokens,
        ties=ties,
        versions=answer["versions"],
    )


def _prompts(model: LanguageModel, tokenizer: "PreTrainedTokenizerBase | None") -> list[list[int]]:
    """Return texts as ids, and a random sequence that reaches far into the positions."""
    longest = model.max_sequence_length()
    room = (_LONGEST if longest is None else longest) - NEW_TOKENS
    if room < 1:
        raise ExportError(f"a model of {longest} positions is too short to compare")
    generator = torch.Generator().manual_seed(0)
    length = min(room, _LONGEST)
    random = torch.randint(0, model.vocab_size, (length,), generator=generator).tolist()
    texts = [] if tokenizer is None else [list(tokenizer(text)["input_ids"]) for text in TEXTS]
    return [ids[:room] for ids in texts if ids] + [random]


def _run_clean_process(
    folder: Path, request: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the logits per prompt and the answer of ``clean_process.py``."""
    from safetensors.torch import load_file

    script = Path(__file__).with_name("clean_process.py")
    environment = dict(os.environ) | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory(prefix="foundry-export-") as name:
        scratch = Path(name)
        paths = {"logits": str(scratch / "logits"), "answer": str(scratch / "answer.json")}
        environment["HF_MODULES_CACHE"] = str(scratch / "modules")
        asked = {**request, **paths, "folder": str(folder.resolve()), "new_tokens": NEW_TOKENS}
        (scratch / "request.json").write_text(json.dumps(asked), encoding="utf-8")
        done = subprocess.run(  # noqa: S603 - our own interpreter and script
            [sys.executable, "-I", str(script), str(scratch / "request.json")],
            env=environment,
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise ExportError(f"a clean process could not use the exported model:\n{last}")
        answer: dict[str, Any] = json.loads(Path(paths["answer"]).read_text(encoding="utf-8"))
        return load_file(paths["logits"]), answer


def _beginning(model: LanguageModel, prompt: Sequence[int]) -> list[int]:
    """Return what the logits of a prompt are compared over.

    A decoder reads the prompt itself; of an encoder-decoder, the decoder is given a part of it.
    """
    return [*prompt][:NEW_TOKENS] if isinstance(model, HFSeq2Seq) else []


def _logits(model: LanguageModel, prompt: Sequence[int], written: Sequence[int]) -> Tensor:
    """Return float32 logits (T, V) of what comes next, on the CPU.

    Of a decoder, T is all of prompt and ``written``; of an encoder-decoder, one more than
    ``written``.
    """
    device = next(model.parameters()).device
    if isinstance(model, HFSeq2Seq):
        ids = torch.tensor([list(prompt)], device=device)
        decoder_ids = torch.tensor([[model.first_token(), *written]], device=device)
        batch = Batch(input_ids=ids, labels=decoder_ids, decoder_input_ids=decoder_ids)
    else:
        ids = torch.tensor([[*prompt, *written]], device=device)
        batch = Batch(input_ids=ids, labels=ids)
    return model.logits(model(batch))[0].float().cpu()


def _agreement(
    model: LanguageModel, prompt: Sequence[int], continuation: Sequence[int], *, margin: float
) -> tuple[int, bool]:
    """Return how many tokens of ``continuation`` are ours, and whether it parted at a tie.

    Our logits after each of its tokens say which one we would have written. Another one is
    allowed only where its logit is within ``margin`` of our best: there rounding decides.

    Raises:
        ExportError: it parts where there is no tie.
    """
    logits = _logits(model, prompt, continuation[:-1])[-len(continuation) :]
    for place, (row, token) in enumerate(zip(logits, continuation, strict=True)):
        best = int(row.argmax())
        if best != token:
            if float(row[best] - row[token]) > margin:
                raise ExportError(
                    f"the exported model continues with token {token} where the trained one says "
                    f"{best}, {place} tokens after a prompt of {len(prompt)}"
                )
            return place, True
    return len(continuation), False
