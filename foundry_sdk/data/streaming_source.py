"""Batches of one rank, in an order that does not depend on how many ranks or workers there are.

The samples lie in a ``StreamingDataset``; which one comes when is computed beforehand for a whole
epoch. So the position of a run is two numbers, an epoch and a batch, and a run goes on exactly
where it was, on as many ranks as it then has.
"""

import logging
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from foundry_sdk.batch import Batch
from foundry_sdk.data.contract import LoaderContext
from foundry_sdk.data.order import FILLER, epoch_batches, share_of_rank
from foundry_sdk.data.predownload import Predownload
from foundry_sdk.data.streamed import VerifiedDataset
from foundry_sdk.errors import DataError, FoundryError, RunError

_log = logging.getLogger(__name__)

Sample = dict[str, Any]
MakeBatch = Callable[[Sequence[Sample | None], Tensor], Batch]
"""Samples, None where there is none, and their numbers → a batch of as many rows."""

_ORDER_KEYS: Final = (
    "shuffle", "shuffle_algo", "shuffle_seed", "shuffle_block_size", "num_canonical_nodes",
    "sampling_method", "sampling_granularity", "batching_method",
)  # fmt: skip


@attrs.frozen(kw_only=True)
class WorkerOptions:
    """How samples are read beside the loop.

    Attributes:
        num_workers: processes; 0 = in the loop's own.
        prefetch_factor: batches that each worker makes ahead.
        pin_memory: put batches in page-locked memory, where there is a GPU.
        persistent_workers: keep the processes from epoch to epoch.
        timeout: seconds to wait for a batch before giving up; 0 = forever.
        predownload: samples whose shards are fetched ahead; None = 8 batches of this rank.
    """

    num_workers: int
    prefetch_factor: int
    pin_memory: bool
    persistent_workers: bool
    timeout: float
    predownload: int | None = None


class StreamingSource:
    """A ``BatchSource`` over MDS shards."""

    def __init__(
        self,
        dataset: VerifiedDataset,
        make_batch: MakeBatch,
        context: LoaderContext,
        options: WorkerOptions,
        *,
        drop_last: bool,
    ) -> None:
        """Compute the first epoch's order; workers start with the first iterator.

        Raises:
            DataError: there are fewer samples than one global batch and the tail is dropped.
        """
        self._dataset = dataset
        self._context = context
        self._drop_last = drop_last
        self._global_batch = context.device_batch * context.world_size
        self._epoch, self._batch = 0, 0
        self._generation = 0
        self._fresh = True
        self._taken_before = np.zeros(dataset.num_streams, np.int64)
        first = self._global_batches(0)
        if not len(first):
            raise DataError(
                f"the data has {dataset.epoch_size} samples an epoch, less than one global batch "
                f"of {self._global_batch}, and drop_last: true drops what fills no batch; lower "
                "the batch size, take more data, or set drop_last: false"
            )
        # Shared with the workers, which outlive an epoch; rewritten in place for the next.
        self._order = torch.empty((len(first), context.device_batch), dtype=torch.int64)
        self._order.share_memory_()  # type: ignore[no-untyped-call]  # torch has no types here
        self._order_epoch = -1
        self._set_order(0, first)
        self._rows = _Rows(dataset, self._order, make_batch)
        self._loader = self._make_loader(options)
        ahead = options.predownload or 8 * context.device_batch
        self._predownload = Predownload(dataset, self._order, ahead)

    def __iter__(self) -> Iterator[Batch]:
        """Return an iterator over the rest of the epoch; the next one is over the next epoch.

        An iterator that was left before its end is over once another is asked for.
        """
        if not self._fresh:
            self._next_epoch()
        self._fresh = False
        self._generation += 1
        if self._order_epoch != self._epoch:
            self._set_order(self._epoch, self._global_batches(self._epoch))
        self._rows.start = self._batch
        self._predownload.pause()  # workers are forked: not while a thread may hold a lock
        results = iter(self._loader)
        self._predownload.go_on_from(self._batch)
        return self._batches(results, self._generation)

    def batches_per_epoch(self) -> int:
        """Return the batches of a whole epoch."""
        return len(self._order)

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the batches that ``next()`` has returned, on all ranks."""
        return {
            "epoch": self._epoch,
            "sample_in_epoch": self._batch * self._global_batch,
            "samples": int(self._dataset.num_samples),
            "epoch_size": int(self._dataset.epoch_size),
            "order": self._order_settings(),
            "stream_samples": self._taken(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, saved on any number of ranks.

        Raises:
            DataError: ``state`` is of other data, another order, or a global batch whose
                boundary it is not.
        """
        self._check_same_data(state)
        position = int(state["sample_in_epoch"])
        batch, rest = divmod(position, self._global_batch)
        if rest or batch > len(self._order):
            raise DataError(
                f"the run was saved after {position} samples of the epoch, which is no boundary "
                f"of a global batch of {self._global_batch}; resume with the batch size it had"
            )
        self._epoch, self._batch, self._fresh = int(state["epoch"]), batch, True
        self._generation += 1
        if self._order_epoch != self._epoch:
            self._set_order(self._epoch, self._global_batches(self._epoch))
        names = [stream.name for stream in self._dataset.streams]
        total = np.array([int(state["stream_samples"].get(name, 0)) for name in names], np.int64)
        self._taken_before = total - self._counts[self._batch]

    def describe(self) -> dict[str, Any]:
        """Return what the run's record says of the data: streams, their cards, their shares."""
        taken = self._taken()
        total = sum(taken.values())
        streams = {}
        for number, stream in enumerate(self._dataset.streams):
            card = stream.card
            streams[stream.name] = {
                "folder": str(stream.folder),
                "remote": stream.remote,
                "samples": int(self._dataset.samples_per_stream[number]),
                "samples_per_epoch": int(stream.choose),
                "wanted_share": float(stream.proportion),
                "taken": taken[stream.name],
                "share": taken[stream.name] / total if total else None,
                "card": None if card is None else card.digest(),
                "tokens": None if card is None else card.tokens,
            }
        return {
            "streams": streams,
            "order": self._order_settings(),
            "samples_per_epoch": int(self._dataset.epoch_size),
            "batches_per_epoch": len(self._order),
        }

    def close(self) -> None:
        """Stop the workers and give shared memory and download folders back."""
        self._generation += 1
        self._predownload.stop()
        workers = getattr(self._loader, "_iterator", None)
        if workers is not None:
            workers._shutdown_workers()
        self._dataset.close()

    def _batches(self, results: Iterator[Any], generation: int) -> Iterator[Batch]:
        while generation == self._generation:
            try:
                result = next(results)
            except StopIteration:
                return
            except RuntimeError as error:
                raise RunError(f"a worker of the loader ended: {error}") from error
            if isinstance(result, _Failure):
                raise DataError(result.message)
            self._batch += 1
            self._predownload.taken(self._batch)
            yield result

    def _next_epoch(self) -> None:
        """Count the epoch as left; an eval loader begins the same pass again."""
        self._taken_before = self._taken_before + self._counts[self._batch]
        self._epoch, self._batch = self._epoch + int(self._context.training), 0

    def _global_batches(self, epoch: int) -> NDArray[np.int64]:
        try:
            return epoch_batches(
                self._dataset, epoch, global_batch=self._global_batch, drop_last=self._drop_last
            )
        except ValueError as error:
            raise DataError(f"the epoch cannot be cut into batches: {error}") from error

    def _set_order(self, epoch: int, batches: NDArray[np.int64]) -> None:
        context = self._context
        node = int(os.environ.get("LOCAL_WORLD_SIZE", context.world_size))
        per_node = node if context.world_size % node == 0 else context.world_size
        share = share_of_rank(
            batches, rank=context.rank, world_size=context.world_size, ranks_per_node=per_node
        )
        self._order.copy_(torch.from_numpy(share))
        self._order_epoch = epoch
        self._counts = _running_counts(batches, self._dataset.sample_offset_per_stream)

    def _taken(self) -> dict[str, int]:
        counts = self._taken_before + self._counts[self._batch]
        streams = self._dataset.streams
        return {s.name: int(count) for s, count in zip(streams, counts, strict=True)}

    def _order_settings(self) -> dict[str, Any]:
        return {key: getattr(self._dataset, key) for key in _ORDER_KEYS}

    def _check_same_data(self, state: Mapping[str, Any]) -> None:
        now: dict[str, Any] = {**self.state_dict(), **self._order_settings()}
        then: dict[str, Any] = {**state, **state.get("order", {})}
        differ = [
            f"{key}: {then.get(key)!r} then, {now[key]!r} now"
            for key in ("samples", "epoch_size", *_ORDER_KEYS)
            if then.get(key) != now[key]
        ]
        if differ:
            raise DataError(
                "the data, or its order, is not what it was when the run was saved: "
                + "; ".join(differ)
                + "; set these back to go on"
            )

    def _make_loader(self, options: WorkerOptions) -> "DataLoader[Any]":
        workers = min(options.num_workers, len(os.sched_getaffinity(0)))
        if workers < options.num_workers:
            _log.info("num_workers: %d, as there are no more CPU cores", workers)
        return DataLoader(
            self._rows,
            batch_size=None,
            sampler=_Remaining(self._rows),
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=options.pin_memory and torch.cuda.is_available(),
            timeout=options.timeout if workers else 0,
            worker_init_fn=_InWorker(self._dataset) if workers else None,
            multiprocessing_context="fork" if workers else None,
            prefetch_factor=options.prefetch_factor if workers else None,
            persistent_workers=options.persistent_workers and workers > 0,
            # Its own, as torch would draw from the global one that dropout uses.
            generator=torch.Generator().manual_seed(self._context.seed),
        )


@attrs.frozen
class _Failure:
    """An error of ours on its way out of a worker, where torch would wrap a traceback round it."""

    message: str


class _Rows(Dataset[Any]):
    """Batch number → the batch itself, in whichever process asks."""

    def __init__(self, dataset: VerifiedDataset, order: Tensor, make_batch: MakeBatch) -> None:
        self._dataset = dataset
        self._order = order
        self._make_batch = make_batch
        self.start = 0

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number: int) -> Batch | _Failure:
        sample_ids = self._order[number].clone()
        try:
            samples = [
                None if sample == FILLER else self._dataset[sample]
                for sample in sample_ids.tolist()
            ]
            return self._make_batch(samples, sample_ids)
        except FoundryError as error:
            return _Failure(str(error))


class _Remaining(Sampler[int]):
    """The batches from where the source stands to the end of the epoch."""

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows) - self._rows.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._rows.start, len(self._rows)))


class _InWorker:
    """What a worker does first."""

    def __init__(self, dataset: VerifiedDataset) -> None:
        self._dataset = weakref.ref(dataset)

    def __call__(self, _: int) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # this process is the parallelism
        torch.set_num_threads(1)
        dataset = self._dataset()
        if dataset is not None:
            dataset.forget_parent()


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401
    return batch


def _running_counts(
    batches: NDArray[np.int64], first_samples: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return how many samples of each stream the first b batches hold: (batches + 1, streams)."""
    counts = np.zeros((len(batches) + 1, len(first_samples)), np.int64)
    if len(first_samples) == 1:
        counts[1:, 0] = np.cumsum((batches != FILLER).sum(axis=1))
        return counts
    stream = np.searchsorted(first_samples, batches, side="right") - 1  # a filler gives -1
    for number in range(len(first_samples)):
        counts[1:, number] = np.cumsum((stream == number).sum(axis=1))
    return counts
