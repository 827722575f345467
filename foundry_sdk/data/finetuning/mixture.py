"""How much of each source an epoch has, and in what order."""

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray


@attrs.frozen(kw_only=True)
class Amount:
    """How much is taken of a source; at most one is given. None of them = each example once.

    Attributes:
        proportion: share of the epoch, relative to the other sources' numbers.
        repeat: times that each example comes; may be a fraction.
        choose: examples of an epoch.
    """

    proportion: float | None = None
    repeat: float | None = None
    choose: int | None = None


def amounts_of_epoch(
    counts: Sequence[int], amounts: Sequence[Amount], epoch_size: int | None
) -> list[int]:
    """Return how many examples of each source an epoch has.

    Args:
        counts: examples that there are.
        amounts: what is asked of each.
        epoch_size: of all; None = as many as there are.
    """
    absolute = [
        each.choose
        if each.choose is not None
        else round(count * (1.0 if each.repeat is None else each.repeat))
        for each, count in zip(amounts, counts, strict=True)
    ]
    if epoch_size is None and all(each.proportion is None for each in amounts):
        return absolute
    shares = np.array(
        [
            count if each.proportion is None else each.proportion
            for each, count in zip(amounts, counts, strict=True)
        ],
        np.float64,
    )
    exact = (sum(counts) if epoch_size is None else epoch_size) * shares / shares.sum()
    whole = np.floor(exact).astype(np.int64)
    # What rounding down has left goes to the largest fractions.
    missing = round(float(exact.sum())) - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    return [int(number) for number in whole]


@attrs.frozen(kw_only=True)
class Order:
    """The order of examples.

    Attributes:
        shuffle: mix all examples, anew each epoch; False = source by source, as they lie.
        seed: of the order.
        fixed: where not all examples are taken, take the same ones in each epoch.
    """

    shuffle: bool
    seed: int
    fixed: bool = False

    def of_epoch(
        self, counts: Sequence[int], chosen: Sequence[int], epoch: int
    ) -> NDArray[np.int64]:
        """Return an epoch's examples, numbered through all sources.

        Args:
            counts: examples of each source.
            chosen: how many of them the epoch has.
            epoch: which one.
        """
        parts, first = [], 0
        for source, (count, wanted) in enumerate(zip(counts, chosen, strict=True)):
            times, rest = divmod(wanted, count) if count else (0, 0)
            drawn = self._random(0 if self.fixed else epoch, source).permutation(count)[:rest]
            parts += [np.arange(count)] * times + [np.sort(drawn)]
            parts[-times - 1 :] = [part + first for part in parts[-times - 1 :]]
            first += count
        order = np.concatenate(parts).astype(np.int64)
        if self.shuffle:
            order = order[self._random(epoch, len(counts)).permutation(len(order))]
        return order

    def settings(self) -> Mapping[str, object]:
        """Return the attributes as JSON values."""
        return {"shuffle": self.shuffle, "shuffle_seed": self.seed, "fixed": self.fixed}

    def _random(self, epoch: int, stream: int) -> np.random.RandomState:
        # RandomState's numbers are promised to stay the same in every release of numpy.
        return np.random.RandomState([self.seed % 2**32, epoch, stream])
