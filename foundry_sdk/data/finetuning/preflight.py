"""What a finetuning run would learn from, found out before its first step."""

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from foundry_sdk.batch import IGNORE_INDEX
from foundry_sdk.data.contract import LoaderContext
from foundry_sdk.data.finetuning.build import build_source
from foundry_sdk.data.finetuning.source import FinetuningSource, Part
from foundry_sdk.data.finetuning.spec import FinetuningDataSpec
from foundry_sdk.data.finetuning.store import TokenizedExamples

if TYPE_CHECKING:
    from foundry_sdk.batch import Batch

_FEW_TARGETS: Final = 0.02
_MANY_DROPPED: Final = 0.05
_CHUNK: Final = 1 << 20
"""Tokens that are hashed at once."""


@attrs.frozen(kw_only=True)
class SourceReport:
    """One source.

    Attributes:
        name: what the spec calls it.
        examples: all of them.
        kept: those that are trained on.
        dropped: how many were left out, by reason.
        cut: kept ones that are longer than a row, and lose their end.
        tokens: of kept ones.
        targets: tokens that are learned.
        learned_of_each: fewest, median and most tokens that are learned of a kept example.
        longest: (number, tokens before cutting) of the longest kept ones.
        ending: kept ones whose end-of-sequence token is learned.
        repeated: kept ones that are in this source more than once.
    """

    name: str
    examples: int
    kept: int
    dropped: dict[str, int]
    cut: int
    tokens: int
    targets: int
    learned_of_each: tuple[int, float, int]
    longest: tuple[tuple[int, int], ...]
    ending: int
    repeated: int

    def warnings(self) -> list[str]:
        """Return what a user should look at, with figures."""
        lines = []
        lost = self.examples - self.kept
        if lost > _MANY_DROPPED * self.examples:
            lines.append(f"{self.name}: {lost} of {self.examples} examples are left out")
        if self.cut:
            endless = self.kept - self.ending
            rest = f", and {endless} do not learn to end" if endless else ""
            lines.append(f"{self.name}: {self.cut} of {self.kept} examples are cut{rest}")
        return lines + self.warnings_of_content()

    def warnings_of_content(self) -> list[str]:
        """Return those that are not about what was left out or cut."""
        lines = []
        if self.targets < _FEW_TARGETS * self.tokens:
            share = self.targets / self.tokens
            lines.append(f"{self.name}: only {share:.2%} of the tokens are learned")
        if self.repeated:
            lines.append(
                f"{self.name}: {self.repeated} of {self.kept} examples are there more than once"
            )
        return lines


@attrs.frozen(kw_only=True)
class Piece:
    """A stretch of a decoded example that is learned as a whole, or not at all."""

    text: str
    learned: bool


@attrs.frozen(kw_only=True)
class LoaderReport:
    """One loader.

    Attributes:
        label: train_loader, or the eval loader's.
        sources: of it.
        samples: decoded examples, each in pieces.
        batches: of an epoch.
        ratio: examples a row.
        efficiency, waste: of packing; None without.
        fingerprints: uint64, of different kept examples, equal for equal examples.
        packed: a row with several examples; None where there is none.
    """

    label: str
    sources: tuple[SourceReport, ...]
    samples: tuple[tuple[Piece, ...], ...]
    batches: int
    ratio: float = 1.0
    efficiency: float | None = None
    waste: float | None = None
    fingerprints: NDArray[np.uint64] = attrs.field(repr=False, eq=False)
    packed: "Batch | None" = attrs.field(repr=False, eq=False)


def inspect_loader(
    label: str, spec: FinetuningDataSpec, context: LoaderContext, *, samples: int
) -> LoaderReport:
    """Tokenize what ``spec`` names, and look at all of it.

    Args:
        label: for the report.
        spec: of the loader.
        context: of one process.
        samples: examples that are decoded.

    Raises:
        DataError: the data is missing, broken, or has nothing to learn.
    """
    return inspect_source(label, build_source(spec, context), samples=samples)


def inspect_source(label: str, source: FinetuningSource, *, samples: int) -> LoaderReport:
    """Look at all of a built source; its position stays as it is."""
    context = source.context
    prints = []
    reports = []
    for part in source.parts:
        own = fingerprints(part.examples)[part.survey.kept]
        different = np.unique(own)
        prints.append(different)
        repeated = len(own) - len(different)
        reports.append(_report(part, always_ends=context.encoder_decoder, repeated=repeated))
    packing = source.describe()["packing"] or {}
    return LoaderReport(
        label=label,
        sources=tuple(reports),
        samples=tuple(_decoded(source, context, samples)),
        batches=source.batches_per_epoch(),
        fingerprints=np.unique(np.concatenate(prints)),
        packed=source.packed_rows(1),
        **packing,
    )


def shared_examples(train: LoaderReport, evaluation: LoaderReport) -> int:
    """Return how many different examples are in both."""
    return len(np.intersect1d(train.fingerprints, evaluation.fingerprints, assume_unique=True))


def fingerprints(examples: TokenizedExamples) -> NDArray[np.uint64]:
    """Return 64 bits of each example, uint64 (examples,): of ids, order and turns.

    A sum of well mixed (place, segment, id), as the order in which they are added is free. Two
    different examples of a million have the same with a chance of 1 in 30 million.
    """
    begins = examples.segments[examples.examples]
    result = np.zeros(len(examples), np.uint64)
    first = 0
    while first < len(examples):
        # At least one example, and as many as make a chunk.
        last = max(first + 1, int(np.searchsorted(begins, begins[first] + _CHUNK, "right")) - 1)
        start, end = begins[first], begins[last]
        segments = np.arange(examples.examples[first], examples.examples[last])
        lengths = np.diff(begins[first : last + 1])
        owner = np.repeat(np.arange(last - first), lengths)
        place = np.arange(end - start) - (begins[first:last] - start)[owner]
        inside = examples.examples[:-1][first:last][owner]
        sizes = np.diff(examples.segments)[segments]
        segment = np.repeat(segments, sizes) - inside
        mixed = _mixed(_mixed(place) + _mixed(segment) * np.uint64(3))
        mixed = _mixed(mixed + examples.tokens[start:end].astype(np.uint64))
        np.add.at(result[first:last], owner, mixed)
        # Empty segments leave no token: what tells them is how many segments there are.
        result[first:last] += _mixed(np.diff(examples.examples[first : last + 1]))
        first = last
    return result


def _mixed(values: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread the bits of numbers: the finalizer of SplitMix64 (Steele, Lea, Flood 2014)."""
    bits = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = bits ^ (bits >> np.uint64(31))
    return mixed


def _report(part: Part, *, always_ends: bool, repeated: int) -> SourceReport:
    found, examples = part.survey, part.examples
    starts = examples.segments[examples.examples]
    whole = (starts[1:] - starts[:-1])[found.kept]
    order = np.argsort(-whole, kind="stable")[:3]
    return SourceReport(
        name=part.name,
        examples=len(examples),
        kept=len(found.kept),
        dropped=found.dropped,
        cut=found.cut,
        tokens=int(found.lengths.sum()),
        targets=found.targets,
        learned_of_each=(
            (int(found.learned.min()), float(np.median(found.learned)), int(found.learned.max()))
            if len(found.learned)
            else (0, 0.0, 0)
        ),
        longest=tuple((int(found.kept[place]), int(whole[place])) for place in order),
        ending=len(found.kept) if always_ends else len(found.kept) - found.cut,
        repeated=repeated,
    )


def _decoded(
    source: FinetuningSource, context: LoaderContext, count: int
) -> list[tuple[Piece, ...]]:
    decode = context.tokenizer.decode
    samples = []
    for ids, targets in source.preview(count):
        if context.encoder_decoder:
            texts: list[tuple[NDArray[np.int64], bool]] = [(ids, False), (targets, True)]
        else:
            texts = _runs(ids, targets != IGNORE_INDEX)
        samples.append(
            tuple(Piece(text=str(decode(part)), learned=learned) for part, learned in texts)
        )
    return samples


def _runs(
    ids: NDArray[np.int64], learned: NDArray[np.bool_]
) -> list[tuple[NDArray[np.int64], bool]]:
    """Cut a row where learned tokens begin and end."""
    cuts = (np.flatnonzero(learned[1:] != learned[:-1]) + 1).tolist()
    bounds = [0, *cuts, len(ids)]
    return [(ids[begin:end], bool(learned[begin])) for begin, end in pairwise(bounds)]
