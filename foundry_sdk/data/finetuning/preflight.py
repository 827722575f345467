"""What a finetuning run would learn from, found out before its first step."""

import hashlib
from itertools import pairwise
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from foundry_sdk.batch import IGNORE_INDEX
from foundry_sdk.data.contract import LoaderContext
from foundry_sdk.data.finetuning.build import build_source
from foundry_sdk.data.finetuning.source import FinetuningSource, Part
from foundry_sdk.data.finetuning.spec import FinetuningDataSpec

_FEW_TARGETS: Final = 0.02
_MANY_DROPPED: Final = 0.05


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
        fingerprints: one per kept example, equal for equal examples.
    """

    label: str
    sources: tuple[SourceReport, ...]
    samples: tuple[tuple[Piece, ...], ...]
    batches: int
    ratio: float = 1.0
    efficiency: float | None = None
    waste: float | None = None
    fingerprints: frozenset[bytes] = attrs.field(repr=False)


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
    source = build_source(spec, context)
    prints = set[bytes]()
    reports = []
    for part in source.parts:
        own = [_fingerprint(part, int(number)) for number in part.survey.kept]
        prints.update(own)
        repeated = len(own) - len(set(own))
        reports.append(_report(part, always_ends=context.encoder_decoder, repeated=repeated))
    packing = source.describe()["packing"] or {}
    return LoaderReport(
        label=label,
        sources=tuple(reports),
        samples=tuple(_decoded(source, context, samples)),
        batches=source.batches_per_epoch(),
        fingerprints=frozenset(prints),
        **packing,
    )


def shared_examples(train: LoaderReport, evaluation: LoaderReport) -> int:
    """Return how many different examples are in both."""
    return len(train.fingerprints & evaluation.fingerprints)


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
        longest=tuple((int(found.kept[place]), int(whole[place])) for place in order),
        ending=len(found.kept) if always_ends else len(found.kept) - found.cut,
        repeated=repeated,
    )


def _fingerprint(part: Part, number: int) -> bytes:
    digest = hashlib.sha256()
    for turn in part.examples.turns(number):
        for ids in turn:
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return digest.digest()


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
