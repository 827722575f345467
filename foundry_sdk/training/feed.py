"""The next batch, drawn while the device works, with the position that belongs to it."""

import time
from typing import TYPE_CHECKING, Any

import attrs

from foundry_sdk.batch import Batch
from foundry_sdk.data.contract import BatchSource
from foundry_sdk.errors import DataError
from foundry_sdk.training.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen(kw_only=True, eq=False)
class Drawn:
    """One batch of this rank and what all ranks know of it.

    Attributes:
        batch: still on the CPU; moved microbatch by microbatch.
        labels, tokens, samples: summed over ranks.
        position: the source's state after this batch: what a checkpoint of its step holds.
        ends_epoch: no batch of the epoch is left after this one.
        starts_epoch: the epoch before it turned out to be over (data without a known length).
    """

    batch: Batch
    labels: int
    tokens: int
    samples: int
    position: dict[str, Any]
    ends_epoch: bool
    starts_epoch: bool


class Feed:
    """Draws one batch ahead. Only batches that were taken count in ``Drawn.position``."""

    def __init__(self, source: BatchSource, runtime: Runtime) -> None:
        self._source = source
        self._runtime = runtime
        self._per_epoch = source.batches_per_epoch()
        self._iterator: Iterator[Batch] | None = None
        self._taken = 0
        self._ahead: Drawn | None = None
        self.wait_seconds = 0.0

    def start_at(self, batch_in_epoch: int) -> None:
        """Say how many batches of the epoch are behind (after a restored position)."""
        self._taken = batch_in_epoch

    def take(self) -> Drawn:
        """Return the batch that was drawn ahead, or draw it now.

        Raises:
            DataError: an epoch is empty.
        """
        drawn = self._ahead or self._draw()
        self._ahead = None
        return drawn

    def put_back(self, drawn: Drawn) -> None:
        """Give back what was taken last, to be taken again."""
        self._ahead = drawn

    def draw_ahead(self) -> None:
        """Draw the next batch; call it when the device has been given its work."""
        if self._ahead is None:
            self._ahead = self._draw()

    def pop_wait(self) -> float:
        """Return the seconds waited for data since the last call."""
        waited, self.wait_seconds = self.wait_seconds, 0.0
        return waited

    def _draw(self) -> Drawn:
        started = time.perf_counter()
        epoch_was_over = False
        batch = self._next_batch()
        if batch is None:  # data without a known length, or a position at an epoch's very end
            epoch_was_over, batch = self._taken > 0, self._next_batch()
        if batch is None:
            raise DataError("train_loader: no batch in an epoch; is there less data than a batch?")
        self._taken += 1
        labels, tokens = self._runtime.sum_counts([batch.label_count(), batch.token_count()])
        ends_epoch = self._taken == self._per_epoch
        if ends_epoch and self._next_batch() is not None:
            raise DataError(f"train_loader: an epoch has more than its {self._per_epoch} batches")
        position = self._source.state_dict()
        self.wait_seconds += time.perf_counter() - started
        return Drawn(
            batch=batch,
            labels=labels,
            tokens=tokens,
            samples=len(batch) * self._runtime.world_size,
            position=position,
            ends_epoch=ends_epoch,
            starts_epoch=epoch_was_over,
        )

    def _next_batch(self) -> Batch | None:
        """Return the epoch's next batch; None at its end, after which the next epoch begins."""
        if self._iterator is None:
            self._iterator = iter(self._source)
        batch = next(self._iterator, None)
        if batch is None:
            self._iterator = None
            self._taken = 0
        return batch
