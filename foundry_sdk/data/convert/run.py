"""One conversion: a source, what to make of it, and where to."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import attrs

from foundry_sdk.data.card import DataCard, SourceFile
from foundry_sdk.data.convert.encode import Encoded, UnitEncoder
from foundry_sdk.data.convert.folder import Workspace, finished, identity, workspace
from foundry_sdk.data.convert.pack import Packer, TextPacker, TokenPacker
from foundry_sdk.data.convert.pool import WorkerSettings, encode_here, encoding
from foundry_sdk.data.convert.recipe import Recipe, TokenizerFacts, tokenizer_facts
from foundry_sdk.data.convert.split import Splitter
from foundry_sdk.data.convert.units import UNIT, Position, Source, Unit
from foundry_sdk.errors import DataError


@attrs.frozen(kw_only=True)
class ConversionProgress:
    """How far a conversion is.

    Attributes:
        split: name of the folder; "" = the output folder itself.
        fraction: of the whole, 0 to 1; None where the size of the input is not known.
        samples, documents: so far.
        tokens: ids in ``samples``; None for text.
        tokens_per_second: (documents a second for text) since this process began.
        seconds_left: None where it is not known.
    """

    split: str
    fraction: float | None
    samples: int
    documents: int
    tokens: int | None
    tokens_per_second: float
    seconds_left: float | None


Report = Callable[[ConversionProgress], None]
Results = Iterator[tuple[Unit, Encoded]]


@attrs.frozen(kw_only=True)
class Job:
    """How a conversion is to be run: nothing here changes what is written.

    Attributes:
        workers: tokenizing processes; None = one for each core this process may use.
        resume: go on with the same conversion, unfinished or finished.
        overwrite: replace what is there, once the new data is whole.
        report: called about once a second with the progress.
    """

    workers: int | None = None
    resume: bool = False
    overwrite: bool = False
    report: Report | None = None

    def __attrs_post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise DataError(f"num_workers: got {self.workers}, expected at least 1")

    def worker_count(self, total: int | None) -> int:
        """Return how many processes have something to do."""
        workers = self.workers or _cores()
        return workers if total is None else max(1, min(workers, -(-total // UNIT)))


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@attrs.frozen(kw_only=True)
class Conversion:
    """A source and what is made of it.

    Attributes:
        split: name of the folder; "" = the output folder itself.
        facts: None where text is written.
    """

    source: Source
    recipe: Recipe
    split: str
    facts: TokenizerFacts | None

    @classmethod
    def of(cls, source: Source, recipe: Recipe, *, split: str) -> Self:
        """Load the tokenizer; see ``recipe.tokenizer_facts``."""
        return cls(source=source, recipe=recipe, split=split, facts=tokenizer_facts(recipe))

    def _recipe(self) -> dict[str, Any]:
        return {
            **attrs.asdict(self.recipe),
            "tokenizer_sha256": None if self.facts is None else self.facts.sha256,
            "split": self.split,
        }

    def digest(self, sources: Sequence[SourceFile]) -> str:
        """Return the digest that a card keeps: of what is made, and of the inputs' content."""
        return identity({**self._recipe(), "sources": [attrs.asdict(item) for item in sources]})

    def made(self, card: DataCard) -> bool:
        """Tell whether a card is that of this very conversion; reads the inputs if it may be."""
        if card.conversion != self.digest(card.sources):
            return False
        hashed = sum(item.sha256 is not None for item in card.sources)
        return tuple(self.source.files({"file": hashed})) == card.sources

    def run(self, final: Path, job: Job) -> DataCard:
        """Write the folder ``final`` and return its card.

        Raises:
            DataError: bad input, or the folder is not free; see ``folder.finished``.
            RunError: a worker process died; what is written is kept for ``resume``.
        """
        done = finished(final, self.made, resume=job.resume, overwrite=job.overwrite)
        if done is not None:
            return done
        arguments = {**self._recipe(), **self.source.identity()}
        with workspace(final, arguments, resume=job.resume, overwrite=job.overwrite) as space:
            packer = _packer(self.recipe)
            if space.state.packer is not None:
                packer.restore(space.carry(), space.state.packer)
            end = _fill(self, space, packer, job)
            for shard in packer.finish():
                space.write(shard)
            _require_samples(packer, self.recipe, final)
            card = _card(self, space, packer, end=end)
            space.publish(card)
        return card


def _fill(conversion: Conversion, space: Workspace, packer: Packer, job: Job) -> Position | None:
    """Write all whole shards; return where reading stopped, None = at the end of the input."""
    if packer.full:
        return space.state.position
    meter = _Meter(conversion, packer, job.report)
    with _results(conversion, space.state.position, job) as results:
        for unit, encoded in results:
            written = False
            for shard in packer.add(encoded, continues=bool(unit.header.get("continues"))):
                space.write(shard)
                written = True
            _count(packer, unit, encoded)
            if written:
                space.commit(position=unit.after, packer=packer.state(), carry=packer.carry())
            meter.update(unit, encoded)
            if packer.full:
                return unit.after
    return None


@contextmanager
def _results(conversion: Conversion, start: Position | None, job: Job) -> Iterator[Results]:
    source, recipe, facts = conversion.source, conversion.recipe, conversion.facts
    if facts is None:
        encoder = UnitEncoder(None, column=recipe.text_column, errors=recipe.errors)
        yield encode_here(encoder, source.units(start, None))
        return
    encode, guarantee = facts.vocabulary.encoder()
    settings = WorkerSettings(
        vocabulary=facts.vocabulary, column=recipe.text_column, errors=recipe.errors
    )
    with encoding(settings, job.worker_count(source.total())) as pool:
        yield pool.results(source.units(start, Splitter(encode, guarantee)))


def _packer(recipe: Recipe) -> Packer:
    layout = recipe.layout()
    if recipe.concat_tokens is None:
        return TextPacker(layout, max_samples=recipe.max_samples)
    return TokenPacker(
        layout,
        length=recipe.concat_tokens,
        wrap=recipe.wrap,
        max_samples=recipe.max_samples,
    )


def _count(packer: Packer, unit: Unit, encoded: Encoded) -> None:
    packer.counts.empty_documents += unit.empty + encoded.empty
    packer.counts.skipped_documents += unit.skipped + encoded.skipped
    packer.counts.replaced_documents += unit.replaced + encoded.replaced
    packer.counts.inexact_splits += unit.inexact_splits


def _require_samples(packer: Packer, recipe: Recipe, final: Path) -> None:
    counts = packer.counts
    if counts.samples:
        return
    read = f"{counts.documents} documents, {counts.empty_documents} empty"
    if recipe.concat_tokens is None:
        raise DataError(f"{final}: nothing to write: the input has {read}")
    raise DataError(
        f"{final}: nothing to write: the input ({read}) has {counts.dropped_tokens} tokens, fewer "
        f"than one row of {recipe.concat_tokens}; lower concat_tokens or give more text"
    )


def _card(
    conversion: Conversion, space: Workspace, packer: Packer, *, end: Position | None
) -> DataCard:
    source, recipe, facts = conversion.source, conversion.recipe, conversion.facts
    sources = tuple(source.files(end))
    stored = [entry["zip_data"] or entry["raw_data"] for entry in space.state.shards]
    counts = attrs.asdict(packer.counts)
    dropped = counts.pop("dropped_tokens")
    length = recipe.concat_tokens
    options = {
        "text_column": recipe.text_column,
        "errors": recipe.errors,
        "max_samples": recipe.max_samples,
        "size_limit": recipe.size_limit,
        "tokenizer_kwargs": dict(recipe.tokenizer_kwargs),
    }
    return DataCard(
        kind="text" if length is None else "tokens",
        split=conversion.split,
        **counts,
        tokens=None if length is None else counts["samples"] * length,
        dropped_tokens=None if length is None else dropped,
        sequence_length=length,
        tokenizer=recipe.tokenizer,
        tokenizer_sha256=None if facts is None else facts.sha256,
        vocab_size=None if facts is None else facts.vocab_size,
        bos_text=recipe.bos_text,
        eos_text=recipe.eos_text,
        bos_ids=() if facts is None else facts.bos_ids,
        eos_ids=() if facts is None else facts.eos_ids,
        wrap=recipe.wrap,
        compression=recipe.compression,
        sources=sources,
        shards={item["basename"]: item["hashes"]["sha256"] for item in stored},
        options=options,
        conversion=conversion.digest(sources),
        versions={name: _version(name) for name in ("foundry-sdk", "tokenizers")},
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


class _Meter:
    """Measures speed and tells about it, about once a second."""

    def __init__(self, conversion: Conversion, packer: Packer, report: Report | None) -> None:
        self._conversion = conversion
        self._total = conversion.source.total()
        self._packer = packer
        self._report = report
        self._began = self._told = time.monotonic()
        self._done = 0
        self._first_fraction: float | None = None

    def update(self, unit: Unit, encoded: Encoded) -> None:
        """Count one unit."""
        length = self._conversion.recipe.concat_tokens
        self._done += len(encoded.lengths) if length is None else len(encoded.data) // 4
        now = time.monotonic()
        fraction = self._fraction(unit)
        if self._first_fraction is None:
            self._first_fraction = fraction
        if self._report is None or now - self._told < 1.0:
            return
        self._told = now
        seconds = now - self._began
        gained = None if fraction is None else fraction - (self._first_fraction or 0.0)
        samples = self._packer.counts.samples
        self._report(
            ConversionProgress(
                split=self._conversion.split,
                fraction=fraction,
                samples=samples,
                documents=self._packer.counts.documents,
                tokens=None if length is None else samples * length,
                tokens_per_second=self._done / seconds,
                seconds_left=(1.0 - (fraction or 0.0)) * seconds / gained if gained else None,
            )
        )

    def _fraction(self, unit: Unit) -> float | None:
        """Return the share of the input, or of the rows that are wanted, whichever ends first."""
        shares = []
        if self._total:
            shares.append(unit.read / self._total)
        if self._conversion.recipe.max_samples:
            shares.append(self._packer.counts.samples / self._conversion.recipe.max_samples)
        return min(1.0, max(shares)) if shares else None
