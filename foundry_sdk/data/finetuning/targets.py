"""Which tokens of an example are learned, and which examples have any."""

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from foundry_sdk.batch import IGNORE_INDEX
from foundry_sdk.data.finetuning.encode import Turn
from foundry_sdk.data.finetuning.options import Targets
from foundry_sdk.data.finetuning.store import TokenizedExamples

Row = NDArray[np.int64]


def stitch(
    turns: Sequence[Turn], targets: Targets, *, eos: int | None, length: int
) -> tuple[Row, Row]:
    """Return one row for a decoder: all turns end to end, an end-of-sequence token behind.

    Args:
        turns: of one example.
        targets: what is learned.
        eos: put behind the last target where that does not end with it; None = never.
        length: what is longer is cut on the right, end-of-sequence token included.

    Returns:
        ids and targets, int64 (at most ``length``,) each; a target is the id at its own place,
        or -100.
    """
    ids: list[NDArray[Any]] = []
    learned: list[NDArray[Any]] = []
    for number, (context, target) in enumerate(turns):
        is_last = number == len(turns) - 1
        response = target
        if is_last and eos is not None and (not len(target) or target[-1] != eos):
            response = np.append(target, np.int32(eos))
        ids += [context, response]
        for part, kept in (
            (context, targets.prompt_is_target(len(context))),
            (response, is_last or targets.responses == "all"),
        ):
            learned.append(part if kept else np.full(len(part), IGNORE_INDEX, np.int32))
    return (
        np.concatenate(ids)[:length].astype(np.int64),
        np.concatenate(learned)[:length].astype(np.int64),
    )


def stitch_apart(turns: Sequence[Turn], *, eos: int, length: int) -> tuple[Row, Row]:
    """Return an encoder's and a decoder's row: everything before the last target, and that.

    Args:
        turns: of one example.
        eos: ends the target, and a context that is cut.
        length: of both at most, end-of-sequence tokens included.

    Returns:
        ids and labels, int64 (at most ``length``,) each. ``labels[t]`` is what the decoder
        predicts at t; it reads what came before.
    """
    parts = [part for turn in turns for part in turn]
    context, target = np.concatenate(parts[:-1]), parts[-1]
    if not len(target) or target[-1] != eos:
        target = np.append(target, np.int32(eos))
    if len(target) >= length:
        target = np.append(target[: length - 1], np.int32(eos))
    if len(context) > length:
        context = np.append(context[: length - 1], np.int32(eos))
    return context.astype(np.int64), target.astype(np.int64)


@attrs.frozen(kw_only=True, eq=False)
class Survey:
    """What examples amount to under some options.

    Attributes:
        kept: int64 (kept examples,): numbers of those that are trained on.
        lengths: int64, of the same: tokens of each row, cut.
        dropped: how many were left out, by reason.
        cut: how many of those kept lose tokens.
        learned: int64, of the kept: tokens of each that are learned.
    """

    kept: NDArray[np.int64]
    lengths: NDArray[np.int64]
    dropped: dict[str, int]
    cut: int
    learned: NDArray[np.int64]

    @property
    def targets(self) -> int:
        """Tokens that are learned, in all kept rows."""
        return int(self.learned.sum())


def survey(
    examples: TokenizedExamples, targets: Targets, *, eos: int | None, length: int, apart: bool
) -> Survey:
    """Look at all examples at once, without reading their tokens.

    An example is dropped when a prompt or a response is empty, or when nothing that is learned
    lies within the first ``length`` tokens (counted without an end-of-sequence token that would
    be added).

    Args:
        examples: of one source.
        targets: what is learned.
        eos: see ``stitch``.
        length: of a row at most.
        apart: the rows are an encoder's and a decoder's, see ``stitch_apart``.
    """
    count = len(examples)
    sizes = np.diff(examples.segments)
    owner = np.repeat(np.arange(count), np.diff(examples.examples))
    is_prompt = (np.arange(len(sizes)) - examples.examples[:-1][owner]) % 2 == 0
    is_last = np.arange(len(sizes)) == examples.examples[1:][owner] - 1
    learned = np.where(is_prompt, sizes >= targets.shortest_prompt(), is_last)
    if targets.responses == "all":
        learned = learned | ~is_prompt
    begins = examples.segments[:-1] - examples.segments[examples.examples[:-1]][owner]
    total = examples.segments[examples.examples[1:]] - examples.segments[examples.examples[:-1]]
    empty = np.zeros(count, np.bool_)
    empty[owner[sizes == 0]] = True
    empty |= np.diff(examples.examples) == 0
    inside = np.clip(length - begins, 0, sizes)  # tokens of each segment that are not cut off
    learned_tokens = np.bincount(owner, np.where(learned, inside, 0), count).astype(np.int64)
    ends = examples.segments[examples.examples[1:]] - 1
    with_eos = np.zeros(count, np.bool_)
    if eos is not None and len(examples.tokens):
        with_eos = np.asarray(examples.tokens[np.maximum(ends, 0)] != eos)
    if apart:  # the decoder's row has its own room, and ends with its end-of-sequence token
        target = np.where(empty, 0, sizes[np.maximum(examples.examples[1:] - 1, 0)])
        late = np.zeros(count, np.bool_)
        rows = np.minimum(total - target, length)
        cut = (total - target > length) | (target + with_eos > length)
        learned_tokens = np.minimum(target + with_eos, length)
    else:
        late = ~empty & (learned_tokens == 0)
        rows = np.minimum(total + with_eos, length)
        cut = total + with_eos > length
        learned_tokens = learned_tokens + (with_eos & (total < length))
    keep = ~(empty | late)
    kept = np.flatnonzero(keep)
    return Survey(
        kept=kept,
        lengths=rows[kept],
        dropped={
            "an empty prompt or response": int(empty.sum()),
            f"nothing to learn within {length} tokens": int(late.sum()),
        },
        cut=int(cut[keep].sum()),
        learned=learned_tokens[kept],
    )
