"""From text to a finetuned model, with the public functions that a user would call."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from foundry_sdk.errors import RunError
from foundry_sdk.quickstart import train_tokenizer as tokenizer_script
from foundry_sdk.quickstart.answers import Answer, ask, is_function
from foundry_sdk.quickstart.by_hand import (
    BY_HAND,
    FINETUNE_FILE,
    PRETRAIN_FILE,
    PROMPT,
    write_files,
)
from foundry_sdk.quickstart.corpus import Corpus, write_corpus
from foundry_sdk.quickstart.pairs import PLUGIN, mine_pairs, read_pairs
from foundry_sdk.quickstart.sizes import Sizes

if TYPE_CHECKING:
    from foundry_sdk.data import ConversionProgress, DataCard
    from foundry_sdk.training.run import RunResult

PROMPTS: Final = (PROMPT, "class", "import")
_DATA_STEPS: Final = 3
_TRAIN_STEPS: Final = 3
_FINETUNE_STEPS: Final = 2
_NEW_TOKENS: Final = 60
_HELD_OUT: Final = "metrics/eval/LanguageCrossEntropy"


class Narrator(Protocol):
    """Who is told how far the quickstart is."""

    def begin(self, title: str) -> None:
        """A step begins; there are ``step_count`` of them."""

    def progress(self, fraction: float, text: str) -> None:
        """The step is so far, 0 to 1."""

    def end(self, text: str) -> None:
        """The step is done."""


@attrs.frozen(kw_only=True)
class SmallData:
    """A small dataset for trying things out.

    Attributes:
        folder: where everything lies.
        corpus: the text, in ``folder/text``.
        vocab_size: tokens of the tokenizer, in ``folder/tokenizer``.
        cards: of the converted data, in ``folder/data``, by split.
        pairs: how many there are in ``folder/pairs``, by split; None = none were mined.
    """

    folder: Path
    corpus: Corpus
    vocab_size: int
    cards: "dict[str, DataCard]"
    pairs: dict[str, int] | None


@attrs.frozen(kw_only=True)
class Finetuned:
    """What finetuning made of the exported model.

    Attributes:
        run: what ``Finetuner.fit`` returned.
        loss_before, loss_after: nats per token of the responses held out.
        answers: to prompts held out, by the model before and after.
    """

    run: "RunResult"
    loss_before: float
    loss_after: float
    answers: Sequence[Answer]


@attrs.frozen(kw_only=True)
class Quickstart:
    """What a quickstart made.

    Attributes:
        data: text, tokenizer, shards and pairs.
        run: what ``Pretrainer.fit`` returned.
        model: the exported model's folder.
        samples: each prompt with its continuation.
        finetuned: None where there were no pairs.
        seconds: of wall time, for all of it.
    """

    data: SmallData
    run: "RunResult"
    model: Path
    samples: Sequence[tuple[str, str]]
    finetuned: Finetuned | None
    seconds: float


def step_count(*, finetune: bool, data_only: bool = False) -> int:
    """Return how many steps a ``Narrator`` hears of."""
    data = _DATA_STEPS + int(finetune)
    return data if data_only else data + _TRAIN_STEPS + _FINETUNE_STEPS * int(finetune)


def quickstart(folder: Path, *, sizes: Sizes, tell: Narrator, finetune: bool) -> Quickstart:
    """Do every step, from text to generated text, in ``folder``.

    Args:
        folder: is made; must not hold anything.
        sizes: of text, model and runs.
        tell: hears of each step.
        finetune: with the last steps, which need a plugin; see ``missing_plugin``.

    Raises:
        RunError: ``folder`` is not empty.
        FoundryError: a step failed.
    """
    began = time.monotonic()
    data = small_data(folder, sizes=sizes, tell=tell, finetune=finetune)
    tell.begin(f"Pretraining: a small MPT, {sizes.steps} steps of {sizes.step_tokens:,} tokens")
    run = _pretrain(folder)
    tell.end(f"loss {run.train_loss:.3f} after {run.tokens:,} tokens")
    _export(run, folder / "model", tell)
    tell.begin("Generating: the exported model goes on from a prompt")
    texts = _generate(folder / "model")
    tell.end(f"{len(texts)} continuations")
    return Quickstart(
        data=data,
        run=run,
        model=folder / "model",
        samples=tuple(zip(PROMPTS, texts, strict=True)),
        finetuned=_finetuned(data, run, sizes, tell) if finetune else None,
        seconds=time.monotonic() - began,
    )


def small_data(folder: Path, *, sizes: Sizes, tell: Narrator, finetune: bool) -> SmallData:
    """Do the first steps: text, tokenizer, shards, pairs; and write the YAML of the runs.

    Args:
        folder: is made; must not hold anything.
        sizes: of the text.
        tell: hears of each step.
        finetune: with pairs, which need a plugin; see ``missing_plugin``.

    Raises:
        RunError: ``folder`` is not empty, or mining failed.
        DataError: this Python comes without the source of its library.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is there already; remove it, or choose another one with --out")
    write_files(folder / BY_HAND, sizes, finetune=finetune)

    tell.begin("Text: the source of Python's standard library")
    corpus = write_corpus(folder / "text", max_bytes=sizes.text_bytes)
    tell.end(f"{corpus.bytes / 1e6:.1f} MB in {corpus.files} files, from {corpus.source}")

    tell.begin("Tokenizer: byte-level BPE, trained on that text")
    vocab_size = tokenizer_script.train_tokenizer(
        corpus.train, folder / "tokenizer", vocab_size=sizes.vocab_size
    )
    tell.end(f"{vocab_size:,} tokens")

    tell.begin("Data: text into shards of tokens (MDS)")
    cards = {split: _convert(folder, split, sizes, tell) for split in ("train", "val")}
    tell.end(
        f"{cards['train'].samples:,} samples to train on and {cards['val'].samples:,} to "
        f"evaluate on, {sizes.sequence_length} tokens each"
    )
    pairs = _mine(folder, sizes, tell) if finetune else None
    return SmallData(folder=folder, corpus=corpus, vocab_size=vocab_size, cards=cards, pairs=pairs)


def _mine(folder: Path, sizes: Sizes, tell: Narrator) -> dict[str, int]:
    tell.begin(f"Pairs: docstrings and their functions, mined from the text by {PLUGIN}")
    pairs = mine_pairs(folder, sizes)
    tell.end(f"{pairs['train']:,} pairs to finetune on and {pairs['val']:,} held out")
    return pairs


def _finetuned(data: SmallData, pretrained: "RunResult", sizes: Sizes, tell: Narrator) -> Finetuned:
    """Finetune the exported model, and ask both the same."""
    from foundry_sdk.loggers.jsonl import METRICS_FILE, read_metrics
    from foundry_sdk.runs.plot import curve

    pairs = 0 if data.pairs is None else data.pairs["train"]
    tell.begin(f"Finetuning: the exported model learns {pairs:,} pairs, {sizes.epochs} epochs")
    run = _finetune(data.folder)
    _, losses = curve(read_metrics(run.run_dir / METRICS_FILE), _HELD_OUT)
    tell.end(f"loss of pairs held out: {losses[0]:.3f} before, {losses[-1]:.3f} after")
    tell.begin("Answers: the same prompts, held out, before and after finetuning")
    held_out = read_pairs(data.folder / "pairs" / "val.jsonl")
    answers = ask(held_out, before=pretrained.run_dir, after=run.run_dir)
    before = sum(is_function(answer.before) for answer in answers)
    after = sum(is_function(answer.after) for answer in answers)
    tell.end(f"of {len(answers)}, {before} before and {after} after are a function")
    return Finetuned(
        run=run,
        loss_before=losses[0],
        loss_after=losses[-1],
        answers=answers,
    )


def _convert(folder: Path, split: str, sizes: Sizes, tell: Narrator) -> "DataCard":
    from foundry_sdk.data import convert_text

    return convert_text(
        input_folder=folder / "text" / split,
        output_folder=folder / "data" / split,
        concat_tokens=sizes.sequence_length,
        tokenizer=str(folder / "tokenizer"),
        eos_text=tokenizer_script.END_OF_TEXT,
        report=_progress(tell, split),
    )


def _progress(tell: Narrator, split: str) -> "Callable[[ConversionProgress], None]":
    def report(progress: "ConversionProgress") -> None:
        if progress.fraction is not None:
            tell.progress(progress.fraction, f"{split}: {progress.tokens or 0:,} tokens")

    return report


def _pretrain(folder: Path) -> "RunResult":
    from foundry_sdk.pretrainer import Pretrainer

    return Pretrainer.from_yaml(folder / BY_HAND / PRETRAIN_FILE, [_root(folder)]).fit()


def _finetune(folder: Path) -> "RunResult":
    from foundry_sdk.finetuner import Finetuner

    return Finetuner.from_yaml(folder / BY_HAND / FINETUNE_FILE, [_root(folder)]).fit()


def _root(folder: Path) -> str:
    return f"variables.root={json.dumps(str(folder))}"


def _export(run: "RunResult", out: Path, tell: Narrator) -> None:
    from foundry_sdk.export.exporter import export_model

    tell.begin("Export: to the format of transformers, compared with the model in a new process")
    certificate = export_model(run.run_dir, out)
    tell.end(
        f"{certificate.architecture}, {certificate.parameters:,} parameters, "
        f"logits differ by at most {certificate.max_abs_difference:.1e}"
    )


def _generate(model: Path) -> list[str]:
    """Return a continuation of each prompt, by the exported model as transformers loads it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    network: Any = AutoModelForCausalLM.from_pretrained(str(model))  # in evaluation mode
    texts = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            new = network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                pad_token_id=tokenizer.eos_token_id,
                max_new_tokens=_NEW_TOKENS,
                do_sample=True,
                temperature=0.7,
                top_k=40,
            )
            texts.append(str(tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)))
    return texts
