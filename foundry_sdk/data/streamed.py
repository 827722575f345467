"""``streaming.StreamingDataset`` with what a long run needs besides: samples by their number.

Every shard is checked before its first sample is read, a download that fails leaves nobody
waiting, and shared memory of dead processes is no obstacle. Which sample comes when is decided
elsewhere (``order``); this is the store that they are read from.
"""

import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Self

import torch
from torch import distributed

from foundry_sdk.data import shared_memory
from foundry_sdk.data.mds import import_streaming
from foundry_sdk.data.verified_stream import DAMAGED_DATA, VerifiedStream
from foundry_sdk.errors import DataError, FoundryError, RunError

_streaming = import_streaming()
_Dataset: Any = _streaming.StreamingDataset
_REMOTE: Final = 1  # states of a shard in streaming.base.dataset
_PREPARING: Final = 2
_TICK: Final = 0.01


class VerifiedDataset(_Dataset):  # type: ignore[misc]  # untyped library
    """Samples of several streams by their number, each from a shard that was checked.

    Attributes:
        streams: in the order of the spec.
    """

    streams: Sequence[VerifiedStream]

    @classmethod
    def open(cls, streams: Sequence[VerifiedStream], **options: Any) -> Self:  # noqa: ANN401
        """Return the dataset; every rank of the run calls this, with the same streams.

        Args:
            streams: not opened yet.
            options: those of ``streaming.StreamingDataset``.

        Raises:
            DataError: a stream is missing, broken, or used by another dataset; on all ranks.
            RunError: there are other ranks, but no process group to reach them.
        """
        world = _streaming.base.world.World.detect()
        if world.num_ranks > 1 and not distributed.is_initialized():
            raise RunError(
                f"the environment says WORLD_SIZE={world.num_ranks}, but torch.distributed is "
                "not initialized; start the runtime before the data, or unset WORLD_SIZE"
            )
        with ExitStack() as locks:
            _on_all_ranks(lambda: _fetch(streams, locks, is_local_leader=world.is_local_leader))
            _on_all_ranks(lambda: _open(streams))
            prefix = _agree_on_prefix(world)
            try:
                with _with_prefix(prefix):
                    dataset = cls(streams=streams, **options)
            except (ValueError, RuntimeError) as error:
                raise DataError(f"the data cannot be opened: {error}") from error
            dataset._take_over(prefix, locks.pop_all(), is_local_leader=world.is_local_leader)
        return dataset

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """Return a sample as column → value; arrays are read-only views.

        Raises:
            DataError: its shard cannot be fetched or is damaged; names shard and sample.
        """
        shard_id, number = self.spanner[sample_id]
        try:
            if not self._checked[shard_id]:
                self._check(shard_id)
            sample: dict[str, Any] = super().get_item(sample_id, retry)
        except DataError:
            raise
        except DAMAGED_DATA as error:
            stream = self.streams[self.stream_per_shard[shard_id]]
            name = self.shards[shard_id].raw_data.basename
            raise DataError(
                f"stream {stream.name!r}: {stream.folder / name}: sample {number} cannot be read "
                f"({error}); foundry data inspect --verify checks the folder"
            ) from error
        return sample

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Make a shard present; ``blocking``: also when another process is at it.

        Raises:
            DataError: it cannot be fetched or is damaged.
        """
        stream = self.streams[self.stream_per_shard[shard_id]]
        patience = time.monotonic() + 60 + stream.download_timeout * (stream.download_retry + 1)
        while True:
            try:
                super().prepare_shard(shard_id, blocking=False)
            except BaseException:
                # Otherwise the shard stays "in preparation", and all others wait forever.
                self._shard_states[shard_id] = _REMOTE
                if self._cache_filelock.is_locked:
                    self._cache_filelock.release(force=True)
                raise
            if not blocking or self._shard_states[shard_id] != _PREPARING:
                return
            while self._shard_states[shard_id] == _PREPARING:
                time.sleep(_TICK)
                if time.monotonic() > patience:  # the process that was at it is gone
                    self._shard_states[shard_id] = _REMOTE
            # A failure of the other process leaves the shard absent: try it here.

    def is_remote(self, shard_id: int) -> bool:
        """Tell whether nobody has fetched the shard or is at it."""
        return bool(self._shard_states[shard_id] == _REMOTE)

    def forget_parent(self) -> None:
        """Let go, in a forked process, of what only the parent must hold."""
        self._locks.close()

    def close(self) -> None:
        """Give shared memory and the folders back."""
        self._finalizer()
        self._locks.close()

    def _take_over(self, prefix: int, locks: ExitStack, *, is_local_leader: bool) -> None:
        self._locks = locks
        self._checked = torch.zeros(self.num_shards, dtype=torch.uint8)
        self._checked.share_memory_()  # type: ignore[no-untyped-call]  # torch has no types here
        self._set_shuffle_block_size(self._unique_rank_world)
        memory = [
            self._locals_shm,
            self._shared_barrier._arr.shm,
            self._next_epoch.arr.shm,
            self._cache_usage.arr.shm,
            self._shard_states.shm,
            self._shard_access_times.shm,
        ]
        self._finalizer = weakref.finalize(
            self, _give_back, memory, prefix if is_local_leader else None, os.getpid()
        )

    def _check(self, shard_id: int) -> None:
        """Check the shard's file, or fetch a checked one, before the first sample is read."""
        stream = self.streams[self.stream_per_shard[shard_id]]
        file = stream.raw_file(self.shards[shard_id].raw_data.basename)
        path = stream.folder / file.basename
        problem = stream.problem(file) if path.is_file() else None
        if problem is not None and stream.remote is None:
            raise stream.damaged(problem)
        if problem is not None:
            # Other workers have found it too; one of them takes the bad copy away, once.
            with _streaming.base.dataset.FileLock(self._cache_filelock_path):
                is_here = self._shard_states[shard_id] not in (_REMOTE, _PREPARING)
                if is_here and stream.problem(file) is not None:
                    path.unlink(missing_ok=True)
                    self._shard_states[shard_id] = _REMOTE
        if problem is not None or not path.is_file():
            self.prepare_shard(shard_id)
        self._checked[shard_id] = 1


def _fetch(
    streams: Sequence[VerifiedStream],
    locks: ExitStack,
    *,
    is_local_leader: bool,
) -> None:
    """Bring each index, once per node, into folders that are this run's alone."""
    if not is_local_leader:
        return
    shared_memory.reclaim()
    for stream in streams:
        if stream.remote is not None:
            lock = shared_memory.CacheLock(stream.folder, what=f"stream {stream.name!r}")
            locks.callback(lock.close)
            stream.fetch_index()


def _open(streams: Sequence[VerifiedStream]) -> None:
    for stream in streams:
        stream.open()


def _give_back(memory: list[Any], prefix: int | None, pid: int) -> None:
    if os.getpid() != pid:  # a forked worker ends; the objects are the parent's
        return
    for shared in memory:
        shared.cleanup()
    if prefix is not None:
        shared_memory.remove(prefix)


def _on_all_ranks(action: Callable[[], None]) -> None:
    """Run ``action`` and raise on every rank what it raises on any."""
    failure: FoundryError | None = None
    try:
        action()
    except FoundryError as error:
        failure = error
    except OSError as error:  # such as a folder that this rank may not write
        failure = DataError(f"the data cannot be opened: {error}")
    if not distributed.is_initialized():
        if failure is not None:
            raise failure
        return
    failures: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(failures, None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for rank, message in enumerate(failures):
        if message is not None:
            raise DataError(f"{message} (on rank {rank})")


def _agree_on_prefix(world: Any) -> int:  # noqa: ANN401
    numbers = [shared_memory.new_prefix()]
    if distributed.is_initialized():
        distributed.broadcast_object_list(numbers, src=0)
    # Two "nodes" may be two launchers on one machine.
    return numbers[0] + int(world.node)


@contextmanager
def _with_prefix(prefix: int) -> Iterator[None]:
    """Have a dataset made under a number that is its own.

    ``streaming`` takes the first number that is free, which two runs that start together both
    do, and refuses a folder that is named by what a killed run left behind.
    """
    memory = _streaming.base.shared.SharedMemory
    module = _streaming.base.dataset

    def own_prefix(_locals: object, _remotes: object, world: Any) -> tuple[int, Any]:  # noqa: ANN401
        name = f"{prefix}_locals"
        shared = None
        if world.is_local_leader:
            # The first four bytes are overwritten when the dataset is deleted.
            note = bytes(4) + shared_memory.owner()
            shared = memory(name, True, len(note))
            shared.buf[: len(note)] = note
        if distributed.is_initialized():
            distributed.barrier()
        return prefix, shared or memory(name, False)

    original = module.get_shm_prefix
    module.get_shm_prefix = own_prefix
    try:
        yield
    finally:
        module.get_shm_prefix = original
