"""Fetches the shards of coming samples while earlier ones are being used."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch import Tensor

from foundry_sdk.data.streamed import VerifiedDataset

_PAUSE = 0.05


class Predownload:
    """A thread of the rank that is ahead of its workers by a number of samples.

    A shard that it fails to fetch is left to the worker that needs it, which tries again and
    says what is wrong.
    """

    def __init__(self, dataset: VerifiedDataset, order: Tensor, samples: int) -> None:
        """Prepare; nothing runs before ``go_on_from``.

        Args:
            dataset: where shards are prepared.
            order: int64 (batches, rows), the rank's sample numbers; may be rewritten between
                epochs.
            samples: how far ahead.
        """
        self._dataset = dataset
        self._order = order
        self._ahead = -(-samples // order.shape[1])
        self._batch = 0
        self._fetched = 0
        self._stopped = threading.Event()
        self._needed = any(stream.remote is not None for stream in dataset.streams)
        self._executor: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    def go_on_from(self, batch: int) -> None:
        """Start over at ``batch``, in the order as it is now."""
        if not self._needed:
            return
        self.pause()
        self._batch = self._fetched = batch
        self._stopped.clear()
        self._executor = self._executor or ThreadPoolExecutor(1, "predownload")
        self._running = self._executor.submit(self._run)

    def taken(self, batch: int) -> None:
        """Note that all batches before ``batch`` are used."""
        self._batch = batch

    def stop(self) -> None:
        """End the thread for good."""
        self.pause()
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None

    def pause(self) -> None:
        """Let the thread rest; a download that it is at is brought to its end."""
        self._stopped.set()
        if self._running is not None:
            # Its error, if it had one, is met again by whoever needs the shard.
            self._running.exception()
            self._running = None

    def _run(self) -> None:
        while not self._stopped.is_set() and self._fetched < len(self._order):
            if self._fetched >= self._batch + self._ahead:
                self._stopped.wait(_PAUSE)
                continue
            ids = self._order[self._fetched].numpy()
            ends = self._dataset.sample_offset_per_shard
            shards = np.searchsorted(ends, ids[ids >= 0], side="right") - 1
            for shard in np.unique(shards).tolist():
                if self._dataset.is_remote(shard) and not self._stopped.is_set():
                    self._dataset.prepare_shard(shard, blocking=False)
            self._fetched += 1
