"""From text to a model that writes text, with the public functions that a user would call."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from foundry_sdk.errors import RunError
from foundry_sdk.quickstart import train_tokenizer as tokenizer_script
from foundry_sdk.quickstart.corpus import Corpus, write_corpus
from foundry_sdk.quickstart.sizes import Sizes, run_yaml

if TYPE_CHECKING:
    from foundry_sdk.data import ConversionProgress, DataCard
    from foundry_sdk.training.run import RunResult

SPEC_FILE: Final = "pretrain.yaml"
TOKENIZER_SCRIPT: Final = "train_tokenizer.py"
COMMANDS_FILE: Final = "commands.sh"
BY_HAND: Final = "by-hand"
"""Subfolder with the three files above, where a user can do every step again."""
PROMPTS: Final = ("def __init__(self", "class", "import")
STEPS: Final = 6
DATA_STEPS: Final = 3
_NEW_TOKENS: Final = 60


class Narrator(Protocol):
    """Who is told how far the quickstart is."""

    def begin(self, title: str) -> None:
        """A step begins; there are ``STEPS``."""

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
    """

    folder: Path
    corpus: Corpus
    vocab_size: int
    cards: "dict[str, DataCard]"


@attrs.frozen(kw_only=True)
class Quickstart:
    """What a quickstart made.

    Attributes:
        data: text, tokenizer and shards.
        run: what ``Pretrainer.fit`` returned.
        model: the exported model's folder.
        samples: each prompt with its continuation.
        seconds: of wall time, for all of it.
    """

    data: SmallData
    run: "RunResult"
    model: Path
    samples: Sequence[tuple[str, str]]
    seconds: float


def quickstart(folder: Path, *, sizes: Sizes, tell: Narrator) -> Quickstart:
    """Do every step, from text to generated text, in ``folder``.

    Args:
        folder: is made; must not hold anything.
        sizes: of text, model and run.
        tell: hears of each step.

    Raises:
        RunError: ``folder`` is not empty.
        FoundryError: a step failed.
    """
    from foundry_sdk.export.exporter import export_model

    began = time.monotonic()
    data = small_data(folder, sizes=sizes, tell=tell)

    tell.begin(f"Pretraining: a small MPT, {sizes.steps} steps of {sizes.step_tokens:,} tokens")
    run = _train(folder)
    tell.end(f"loss {run.train_loss:.3f} after {run.tokens:,} tokens")

    tell.begin("Export: to the format of transformers, compared with the model in a new process")
    certificate = export_model(run.run_dir, folder / "model")
    tell.end(
        f"{certificate.architecture}, {certificate.parameters:,} parameters, "
        f"logits differ by at most {certificate.max_abs_difference:.1e}"
    )

    tell.begin("Generating: the exported model goes on from a prompt")
    texts = _generate(folder / "model")
    tell.end(f"{len(texts)} continuations")
    return Quickstart(
        data=data,
        run=run,
        model=folder / "model",
        samples=tuple(zip(PROMPTS, texts, strict=True)),
        seconds=time.monotonic() - began,
    )


def small_data(folder: Path, *, sizes: Sizes, tell: Narrator) -> SmallData:
    """Do the first ``DATA_STEPS`` steps: text, tokenizer, shards; and write the run's YAML.

    Raises:
        RunError: ``folder`` is not empty.
        DataError: this Python comes without the source of its library.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is there already; remove it, or choose another one with --out")
    write_files(folder / BY_HAND, sizes)

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
    return SmallData(folder=folder, corpus=corpus, vocab_size=vocab_size, cards=cards)


def write_files(folder: Path, sizes: Sizes) -> None:
    """Write the files with which a user does each step: YAML, script, commands."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPEC_FILE).write_text(run_yaml(sizes), encoding="utf-8")
    shutil.copyfile(Path(tokenizer_script.__file__), folder / TOKENIZER_SCRIPT)
    commands = "\n\n".join(f"# {about}\n{command}" for about, command in steps_by_hand(sizes))
    head = "#!/usr/bin/env bash\n# Each step of `foundry quickstart` by hand, in this folder.\n"
    enter = 'set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")"\n'
    (folder / COMMANDS_FILE).write_text(f"{head}{enter}\n{commands}\n", encoding="utf-8")


def steps_by_hand(sizes: Sizes) -> list[tuple[str, str]]:
    """Return what each step does and its command, in the folder ``BY_HAND``."""
    end = tokenizer_script.END_OF_TEXT
    convert = "\n".join(
        f"foundry data convert text --input-folder ../text/{split} --output-folder data/{split} "
        f"--concat-tokens {sizes.sequence_length} --tokenizer tokenizer --eos-text '{end}'"
        for split in ("train", "val")
    )
    tokenizer = f"python {TOKENIZER_SCRIPT} ../text/train tokenizer {sizes.vocab_size}"
    return [
        ("Train a tokenizer on the text", tokenizer),
        ("Convert the text to shards of tokens", convert),
        (f"Train and evaluate, as {SPEC_FILE} says", f"foundry train {SPEC_FILE}"),
        ("Look at the run: one page with all its curves", "foundry report runs/quickstart"),
        ("Export to the format of transformers", "foundry export runs/quickstart model"),
        ("Generate", f"foundry generate model --prompt '{PROMPTS[0]}'"),
    ]


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


def _train(folder: Path) -> "RunResult":
    from foundry_sdk.pretrainer import Pretrainer

    root = json.dumps(str(folder))
    return Pretrainer.from_yaml(folder / BY_HAND / SPEC_FILE, [f"variables.root={root}"]).fit()


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
