"""Several examples in one row: which ones, and how many rows that takes."""

from collections.abc import Iterator, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

_RATIOS = 20
_PROFILED_BATCHES = 100
_SHORTEST = 100


@attrs.define
class Bin:
    """Examples that share a row.

    Attributes:
        size: tokens.
        members: their numbers, in the order in which they lie in the row.
    """

    size: int
    members: list[int]


def pack(
    numbers: Sequence[int],
    lengths: Sequence[int],
    *,
    rows: int,
    room: int,
    leftovers: list[Bin],
    keep: int | None,
) -> tuple[list[Bin], list[Bin]]:
    """Put examples into ``rows`` bins, first fit, the longest first.

    Args:
        numbers: of the new examples.
        lengths: tokens of each.
        rows: bins that are taken; fewer only where there are fewer examples.
        room: tokens of a bin.
        leftovers: bins of earlier calls that were not taken.
        keep: bins that are kept for later, the fullest ones; None = all.

    Returns:
        The fullest bins, and those that are left for the next call.
    """
    bins = [Bin(each.size, [*each.members]) for each in leftovers]
    order = sorted(range(len(numbers)), key=lambda index: lengths[index], reverse=True)
    for place, index in enumerate(order):
        number, length = numbers[index], lengths[index]
        if len(order) - place <= rows - len(bins):
            # No more examples are left than bins are missing: each opens its own.
            bins += [Bin(lengths[each], [numbers[each]]) for each in order[place:]]
            break
        for position, found in enumerate(bins):
            if found.size + length <= room:
                del bins[position]
                bins.append(Bin(found.size + length, [*found.members, number]))
                break
        else:
            bins.append(Bin(length, [number]))
    bins.sort(key=lambda each: each.size, reverse=True)
    taken, left = bins[:rows], bins[rows:]
    return taken, left if keep is None else left[:keep]


@attrs.frozen(kw_only=True)
class PackedEpoch:
    """One epoch's rows.

    Attributes:
        batches: of each global batch the rows, of each row its examples' positions in the order.
        efficiency: share of the rows' room that has tokens.
        waste: share of the tokens that are in no row.
    """

    batches: list[list[list[int]]]
    efficiency: float
    waste: float


def pack_epoch(
    lengths: NDArray[np.int64],
    *,
    raw: int,
    rows: int,
    room: int,
    keep: int | None,
    drop_last: bool,
) -> PackedEpoch:
    """Pack an epoch, ``raw`` examples at a time.

    The number of batches depends on the number of examples alone, not on their order.

    Args:
        lengths: int64 (examples,), tokens of each in the epoch's order.
        raw: examples that are taken for one batch.
        rows: of a batch.
        room: tokens of a row.
        keep: see ``pack``.
        drop_last: leave out the examples at the end that are fewer than ``raw``.
    """
    left: list[Bin] = []
    batches = []
    sizes = lengths.tolist()
    packed = used = 0
    for numbers in _chunks(len(sizes), raw, drop_last=drop_last):
        new = [sizes[number] for number in numbers]
        taken, left = pack(numbers, new, rows=rows, room=room, leftovers=left, keep=keep)
        batches.append([each.members for each in taken])
        packed += sum(each.size for each in taken)
        used += len(taken)
    total = int(lengths.sum())
    return PackedEpoch(
        batches=batches,
        efficiency=packed / (room * used) if used else 0.0,
        waste=1 - packed / total if total else 0.0,
    )


def find_ratio(lengths: NDArray[np.int64], *, rows: int, room: int, keep: int | None) -> float:
    """Return the largest of 20 ratios up to which no token is wasted.

    Args:
        lengths: int64 (examples,), tokens of each in the first epoch's order.
        rows: of a batch.
        room: tokens of a row.
        keep: see ``pack``.

    Returns:
        Examples a row, at least 1.
    """
    if room <= _SHORTEST:
        return 1.0
    tried: set[int] = set()
    ratios: list[float] = []
    for value in np.linspace(1, room / _SHORTEST, _RATIOS):
        ratio = round(float(value), 1)
        if int(ratio * rows) not in tried:
            tried.add(int(ratio * rows))
            ratios.append(ratio)
    profiled = lengths[: max(tried) * _PROFILED_BATCHES]
    best = 1.0
    for ratio in ratios:
        raw = int(ratio * rows)
        whole = len(profiled) // raw * raw
        if not whole:
            break
        found = pack_epoch(
            profiled[:whole], raw=raw, rows=rows, room=room, keep=keep, drop_last=True
        )
        if found.waste > 0:
            break
        best = ratio
    return best


def _chunks(count: int, size: int, *, drop_last: bool) -> Iterator[list[int]]:
    end = count // size * size if drop_last else count
    for start in range(0, end, size):
        yield list(range(start, min(start + size, end)))
