"""Batches of one rank: the order of an epoch is known beforehand, whatever reads it."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch

from foundry_sdk.batch import Batch
from foundry_sdk.data.collate import NO_SAMPLE
from foundry_sdk.data.contract import LoaderContext
from foundry_sdk.data.finetuning.collate import Example, FinetuningCollator
from foundry_sdk.data.finetuning.mixture import Amount, Order, amounts_of_epoch
from foundry_sdk.data.finetuning.options import Targets
from foundry_sdk.data.finetuning.packing import PackedEpoch, find_ratio, pack_epoch
from foundry_sdk.data.finetuning.store import TokenizedExamples
from foundry_sdk.data.finetuning.targets import Survey, stitch, stitch_apart
from foundry_sdk.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True, eq=False)
class Part:
    """One source of a mixture.

    Attributes:
        name: what the spec calls it.
        examples: all of them.
        survey: which are trained on.
        amount: how much of them an epoch has.
    """

    name: str
    examples: TokenizedExamples
    survey: Survey
    amount: Amount


@attrs.frozen(kw_only=True)
class PackingOptions:
    """How examples share rows.

    Attributes:
        ratio: examples a row; None = as many as fit without waste.
        keep: rows that are kept for the next batch; None = all.
    """

    ratio: float | None
    keep: int | None


@attrs.frozen(kw_only=True)
class SourceOptions:
    """What is made of the examples.

    Attributes:
        targets: what is learned.
        eos: id put behind an example that does not end with it.
        collate: makes batches.
        order: of the examples.
        epoch_size: examples an epoch; None = all.
        drop_last: leave out what fills no batch.
        packing: None = one example a row.
        pin_memory: put batches where copies to a GPU run beside work.
    """

    targets: Targets
    eos: int
    collate: FinetuningCollator
    order: Order
    epoch_size: int | None = None
    drop_last: bool = False
    packing: PackingOptions | None = None
    pin_memory: bool = False


class FinetuningSource:
    """A ``BatchSource`` over tokenized examples."""

    def __init__(
        self, parts: Sequence[Part], options: SourceOptions, context: LoaderContext
    ) -> None:
        """Lay out the first epoch.

        Raises:
            DataError: there is no example, or there are fewer than a global batch takes and the
                tail is dropped.
        """
        self._parts = parts
        self._options = options
        self._context = context
        self._rows_per_batch = context.device_batch * context.world_size
        self._counts = [len(part.survey.kept) for part in parts]
        self._firsts = np.concatenate([[0], np.cumsum(self._counts)])
        self._lengths = np.concatenate([part.survey.lengths for part in parts])
        self._chosen = amounts_of_epoch(
            self._counts, [part.amount for part in parts], options.epoch_size
        )
        for part, count, chosen in zip(parts, self._counts, self._chosen, strict=True):
            if not count and chosen:
                raise DataError(f"{part.name}: no example is left to choose from")
        self._epoch, self._batch, self._fresh = 0, 0, True
        self._generation = 0
        self._laid_out = -1
        self._ratio = self._find_ratio()
        self._raw = int(self._rows_per_batch * self._ratio)
        total = sum(self._chosen)
        whole, rest = divmod(total, self._raw)
        self._batches = whole if options.drop_last else whole + bool(rest)
        if not self._batches:
            raise DataError(
                f"the data has {total} examples an epoch, less than the {self._raw} of one global "
                f"batch of {self._rows_per_batch} sequences, and drop_last: true drops what fills "
                "no batch; lower the batch size, take more data, or set drop_last: false"
            )
        self._lay_out(0)
        if self._packed is not None:
            _log.info(
                "packing: %.1f examples a row, rows are %.1f%% full, %.2f%% of the tokens are in "
                "no row of an epoch",
                self._ratio, 100 * self._packed.efficiency, 100 * self._packed.waste,
            )  # fmt: skip

    def __iter__(self) -> Iterator[Batch]:
        """Return an iterator over the rest of the epoch; the next one is over the next epoch."""
        if not self._fresh:
            self._epoch += int(self._context.training)
            self._batch = 0
        self._fresh = False
        self._generation += 1
        self._lay_out(self._epoch)
        return self._rest_of_epoch(self._generation)

    def batches_per_epoch(self) -> int:
        """Return the batches of a whole epoch, the same for each."""
        return self._batches

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the batches that ``next()`` has returned, on all ranks."""
        return {
            "epoch": self._epoch,
            "sample_in_epoch": self._batch * self._rows_per_batch,
            "order": self._identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, saved on any number of ranks.

        Raises:
            DataError: ``state`` is of other data, another order, or a global batch whose
                boundary it is not.
        """
        now, then = self._identity(), state.get("order", {})
        differ = [
            f"{key}: {then.get(key)!r} then, {value!r} now"
            for key, value in now.items()
            if then.get(key) != value
        ]
        if differ:
            raise DataError(
                "the data, or its order, is not what it was when the run was saved: "
                + "; ".join(differ)
                + "; set these back to go on"
            )
        batch, rest = divmod(int(state["sample_in_epoch"]), self._rows_per_batch)
        if rest or batch > self._batches:
            raise DataError(
                f"the run was saved after {state['sample_in_epoch']} sequences of the epoch, which "
                f"is no boundary of a global batch of {self._rows_per_batch}; resume with the "
                "batch size it had"
            )
        self._epoch, self._batch, self._fresh = int(state["epoch"]), batch, True
        self._generation += 1

    def describe(self) -> dict[str, Any]:
        """Return what the run's record says of the data: sources, dropped examples, packing."""
        sources = {}
        for part, chosen in zip(self._parts, self._chosen, strict=True):
            found = part.survey
            tokens = int(found.lengths.sum())
            sources[part.name] = {
                "folder": str(part.examples.folder),
                "examples": len(part.examples),
                "kept": len(found.kept),
                "chat_template": part.examples.chat_template,
                "dropped": found.dropped,
                "cut": found.cut,
                "tokens": tokens,
                "target_share": found.targets / tokens if tokens else None,
                "examples_per_epoch": chosen,
            }
        packed = self._packed
        return {
            "sources": sources,
            "order": self._identity(),
            "examples_per_epoch": sum(self._chosen),
            "batches_per_epoch": self._batches,
            "packing": None
            if packed is None
            else {"ratio": self._ratio, "efficiency": packed.efficiency, "waste": packed.waste},
        }

    @property
    def parts(self) -> Sequence[Part]:
        """The sources."""
        return self._parts

    @property
    def context(self) -> LoaderContext:
        """What it was built for."""
        return self._context

    def preview(self, count: int) -> list[Example]:
        """Return the first examples of the first epoch as they go into rows."""
        self._lay_out(0)
        return [self._example(int(each)) for each in self._order[:count]]

    def packed_rows(self, count: int) -> Batch | None:
        """Return rows with several examples each, of the first epoch's first batch; all ranks'.

        Args:
            count: of rows at most, those with the most examples.

        Returns:
            None where no row has several examples. The position stays as it is.
        """
        self._lay_out(0)
        found = [row for row in self._rows_of(0) if len(row) > 1]
        if not found:
            return None
        found = sorted(found, key=len, reverse=True)[:count]
        rows = [[self._example(each) for each in row] for row in found]
        return self._options.collate(rows, torch.full((len(rows),), NO_SAMPLE), is_first=True)

    def close(self) -> None:
        """End the iterators."""
        self._generation += 1

    def _rest_of_epoch(self, generation: int) -> Iterator[Batch]:
        while generation == self._generation and self._batch < self._batches:
            batch = self._make(self._batch)
            self._batch += 1
            yield batch

    def _make(self, number: int) -> Batch:
        """Return this rank's rows of a global batch: every world-size-th one."""
        whole: list[list[int]] = self._rows_of(number)
        whole += [[] for _ in range(self._rows_per_batch - len(whole))]
        rows = whole[self._context.rank :: self._context.world_size]
        sample_ids = [self._sample_id(row[0]) if row else NO_SAMPLE for row in rows]
        batch = self._options.collate(
            [[self._example(each) for each in row] for row in rows],
            torch.tensor(sample_ids),
            is_first=self._epoch == 0 and number == 0,
        )
        return batch.pin_memory() if self._options.pin_memory else batch

    def _rows_of(self, number: int) -> list[list[int]]:
        """Return the rows of a global batch, each the examples in it."""
        if self._packed is not None:
            return [
                [int(self._order[place]) for place in row] for row in self._packed.batches[number]
            ]
        start = number * self._rows_per_batch
        return [[each] for each in self._order[start : start + self._rows_per_batch].tolist()]

    def _locate(self, example: int) -> tuple[Part, int]:
        source = int(np.searchsorted(self._firsts, example, side="right")) - 1
        part = self._parts[source]
        return part, int(part.survey.kept[example - self._firsts[source]])

    def _sample_id(self, example: int) -> int:
        """Return an example's number, counted through all sources, dropped ones included."""
        source = int(np.searchsorted(self._firsts, example, side="right")) - 1
        before = sum(len(part.examples) for part in self._parts[:source])
        return before + self._locate(example)[1]

    def _example(self, example: int) -> Example:
        part, number = self._locate(example)
        turns, options = part.examples.turns(number), self._options
        length = options.collate.length
        if options.collate.encoder_decoder:
            return stitch_apart(turns, eos=options.eos, length=length)
        return stitch(turns, options.targets, eos=options.eos, length=length)

    def _lay_out(self, epoch: int) -> None:
        if epoch == self._laid_out:
            return
        self._order: NDArray[np.int64] = self._options.order.of_epoch(
            self._counts, self._chosen, epoch
        )
        self._packed = self._pack()
        self._laid_out = epoch

    def _pack(self) -> PackedEpoch | None:
        packing = self._options.packing
        if packing is None or self._ratio == 1:
            return None
        return pack_epoch(
            self._lengths[self._order],
            raw=self._raw,
            rows=self._rows_per_batch,
            room=self._options.collate.length,
            keep=packing.keep,
            drop_last=self._options.drop_last,
        )

    def _find_ratio(self) -> float:
        packing = self._options.packing
        if packing is None:
            return 1.0
        if packing.ratio is not None:
            return packing.ratio
        order = self._options.order.of_epoch(self._counts, self._chosen, 0)
        return find_ratio(
            self._lengths[order],
            rows=self._rows_per_batch,
            room=self._options.collate.length,
            keep=packing.keep,
        )

    def _identity(self) -> dict[str, Any]:
        """Return what must be as it was for a position to mean the same."""
        packing = self._options.packing
        return {
            **self._options.order.settings(),
            "sources": [part.examples.digest for part in self._parts],
            "examples": self._counts,
            "examples_per_epoch": self._chosen,
            "drop_last": self._options.drop_last,
            "packing_ratio": self._ratio,
            "leftovers": None if packing is None else packing.keep,
        }
