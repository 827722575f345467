"""Sources tokenized once: kept by content, made by one process of a machine, read by all."""

import hashlib
import inspect
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from torch import distributed

from foundry_sdk.data.contract import Preprocess
from foundry_sdk.data.finetuning.encode import DATE, ExampleEncoder
from foundry_sdk.data.finetuning.rows import Rows, RowSource
from foundry_sdk.data.finetuning.store import ExampleWriter, TokenizedExamples, alone, is_whole
from foundry_sdk.data.mds import write_file
from foundry_sdk.data.tokenizer import fingerprint
from foundry_sdk.errors import DataError, FoundryError, RunError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

_FORMAT: Final = 2
"""Raised where the same input gives other tokens than before, or more is kept of them."""
_ROWS: Final = 1000
_REPORT_SECONDS: Final = 5.0
_TICK: Final = 0.05


@attrs.frozen(kw_only=True)
class SourceRecipe:
    """A source and what makes examples of its rows.

    Attributes:
        name: what messages call it.
        source: of rows.
        preprocess: None = rows are examples already.
        pretokenized: see ``ExampleEncoder``.
    """

    name: str
    source: RowSource
    preprocess: Preprocess | None = None
    pretokenized: str | None = None


def tokenized(
    recipes: Sequence[SourceRecipe], tokenizer: "PreTrainedTokenizerBase", root: Path
) -> list[TokenizedExamples]:
    """Return the examples of each source; every rank of the run calls this.

    The first process of each machine reads and tokenizes what is not in ``root`` yet; the others
    wait for a file, not in a collective, which a long tokenization would let run out of time.

    Raises:
        DataError: a source cannot be read or a row is no example; on all ranks of the machine.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0")) if distributed.is_initialized() else 0
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        folders = [_folder(recipe, tokenizer, root) for recipe in recipes]
        return [TokenizedExamples.read(folder) for folder in folders]
    notices: list[Any] = [None] * distributed.get_world_size()
    own = {"name": f"{os.getpid()}-{secrets.token_hex(8)}", "pid": os.getpid(), "root": str(root)}
    distributed.all_gather_object(notices, own)
    leader = notices[distributed.get_rank() - local_rank]
    answer = Path(leader["root"]) / f"answer-{leader['name']}.json"
    failure: str | None = None
    folders = []
    if local_rank == 0:
        failure = _lead(recipes, tokenizer, root, answer)
    else:
        _wait(answer, leader["pid"])
    said = json.loads(answer.read_text())
    failure = said["failure"]
    failures: list[str | None] = [None] * len(notices)
    distributed.all_gather_object(failures, failure)
    if local_rank == 0:
        answer.unlink()
    for message in failures:
        if message is not None:
            raise DataError(message)
    folders = [Path(folder) for folder in said["folders"]]
    return [TokenizedExamples.read(folder) for folder in folders]


def _lead(
    recipes: Sequence[SourceRecipe],
    tokenizer: "PreTrainedTokenizerBase",
    root: Path,
    answer: Path,
) -> str | None:
    """Tokenize for the other processes of this machine, and tell them where it lies."""
    folders: list[str] = []
    failure: str | None = None
    try:
        folders = [str(_folder(recipe, tokenizer, root)) for recipe in recipes]
    except FoundryError as error:
        failure = str(error)
    except OSError as error:
        failure = f"tokenized examples cannot be written: {error}"
    root.mkdir(parents=True, exist_ok=True)
    write_file(answer, json.dumps({"folders": folders, "failure": failure}).encode())
    return failure


def _wait(answer: Path, leader: int) -> None:
    while not answer.is_file():
        time.sleep(_TICK)
        if not Path(f"/proc/{leader}").exists() and not answer.is_file():
            raise RunError(f"process {leader}, which tokenizes for this machine, has ended")


def _folder(recipe: SourceRecipe, tokenizer: "PreTrainedTokenizerBase", root: Path) -> Path:
    """Return the folder with a source's examples, made first if need be."""
    rows = recipe.source.open()
    try:
        about = _about(recipe, rows, tokenizer)
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        folder = root / key[:32]
        if is_whole(folder):
            _log.info("%s: %d examples, tokenized before (%s)", recipe.name, len(rows), folder)
            return folder
        with alone(folder):
            if not is_whole(folder):
                _tokenize(recipe, rows, tokenizer, folder, about)
        return folder
    finally:
        rows.close()


def _about(
    recipe: SourceRecipe, rows: Rows, tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, Any]:
    """Return all that the tokens depend on."""
    bos = tokenizer.bos_token_id
    return {
        "format": _FORMAT,
        "rows": rows.identity(),
        "tokenizer": fingerprint(tokenizer),
        "special": [bos, getattr(tokenizer, "add_bos_token", None), tokenizer("a")["input_ids"]],
        "chat_template": tokenizer.chat_template,
        "date": DATE,
        "preprocessor": None if recipe.preprocess is None else code_of(recipe.preprocess),
        "pretokenized": recipe.pretokenized,
    }


def code_of(function: Preprocess) -> list[str]:
    """Return a function's name and a digest of the file that it is from.

    What that file imports may change unnoticed.
    """
    if attrs.has(type(function)):
        return [repr(function)]
    try:
        source = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (OSError, TypeError):
        source = getattr(getattr(function, "__code__", None), "co_code", repr(function).encode())
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return [name, hashlib.sha256(source).hexdigest()]


def _tokenize(
    recipe: SourceRecipe,
    rows: Rows,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    about: dict[str, Any],
) -> None:
    partial = folder.with_suffix(".partial")
    encoder = ExampleEncoder(tokenizer, pretokenized=recipe.pretokenized)
    writer = ExampleWriter(partial)
    started = shown = time.monotonic()
    total, first = len(rows), writer.examples
    if first:
        _log.info("%s: going on after %d of %d examples", recipe.name, first, total)
    try:
        source = rows.read(first)
        while chunk := list(islice(source, _ROWS)):
            places = [rows.place(writer.examples + n) for n in range(len(chunk))]
            turns = encoder.encode(chunk, recipe.preprocess, places)
            writer.append(turns, chat_template=encoder.chat_template or rows.chat_template())
            now = time.monotonic()
            if now - shown >= _REPORT_SECONDS:
                shown, done = now, writer.examples
                speed = (done - first) / (now - started)
                left = (total - done) / speed
                _log.info(
                    "%s: tokenized %d of %d examples, %.0f a second, %.0f s left",
                    recipe.name, done, total, speed, left,
                )  # fmt: skip
        writer.finish(about)
    finally:
        writer.close()
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    seconds = time.monotonic() - started
    _log.info(
        "%s: tokenized %d examples, %d tokens, in %.1f s (kept in %s)",
        recipe.name, total, writer.tokens, seconds, folder,
    )  # fmt: skip
