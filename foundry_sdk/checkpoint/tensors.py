"""Tensors of a checkpoint as safetensors, through torch.distributed.checkpoint; no pickle.

Sharded tensors (DTensor) are written by the ranks that hold them and read by any number of ranks;
plain ones, equal on every rank, are written once.
"""

import io
import os
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from foundry_sdk.checkpoint.files import FileEntry, explain, write_file
from foundry_sdk.checkpoint.layout import TensorEntry
from foundry_sdk.errors import CheckpointError, CheckpointWriteError

_THREADS: Final = 4
_FILE_BYTES: Final = 2**29
"""Upper end of a tensor file's size. Besides its tensors a rank has at most _THREADS + 2 files'
content in memory during a save."""


def describe(tensors: Mapping[str, Tensor]) -> dict[str, TensorEntry]:
    """Return shape and dtype of each whole (unsharded) tensor."""
    return {
        name: TensorEntry(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    }


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return how many bytes the whole tensors take, each counted once over all ranks."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write_tensors(
    folder: Path, tensors: Mapping[str, Tensor], *, world_size: int
) -> Callable[[], dict[str, FileEntry]]:
    """Write this rank's share into ``folder``; called on every rank.

    Returns:
        A function that waits until this rank's files are on the disk and returns them, or raises
        this rank's OSError. The tensors may change as soon as it is returned.

    Raises:
        CheckpointWriteError: a rank could not take its tensors; raised on every rank.
    """
    if not tensors:
        return dict
    files = _BackgroundFiles()
    writer = HuggingFaceStorageWriter(
        str(folder),
        fqn_to_index_mapping=_files_of(tensors, world_size),
        save_distributed=True,
    )
    writer.fs = files
    writer.sync_files = False  # write_file does that
    try:
        with _without_hint():
            save(
                _as_stored(tensors),
                storage_writer=writer,
                planner=_ContiguousSavePlanner(),
                no_dist=world_size == 1,
            )
    except CheckpointException as error:
        files.abandon()
        raise _first_failure(error, f"writing {folder}", CheckpointWriteError) from error
    except BaseException:
        files.abandon()
        raise
    return files.finish


def read_tensors(folder: Path, tensors: Mapping[str, Tensor], *, world_size: int) -> None:
    """Fill ``tensors`` (this rank's shards, or whole) in place; called on every rank.

    Raises:
        CheckpointError: a rank could not read; raised on every rank.
    """
    if not tensors:
        return
    try:
        with _without_hint():
            load(
                _as_stored(tensors),
                storage_reader=HuggingFaceStorageReader(str(folder)),
                planner=DefaultLoadPlanner(),
                no_dist=world_size == 1,
            )
    except CheckpointException as error:
        raise _first_failure(error, f"reading {folder}", CheckpointError) from error


class _BackgroundFiles(FileSystem):
    """Writes, digests and syncs files in threads, while the next ones are put together.

    At most ``_THREADS`` files wait in memory.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="checkpoint")
        self._free = threading.BoundedSemaphore(_THREADS)
        self._jobs: dict[str, Future[FileEntry]] = {}

    @contextmanager
    def create_stream(
        self,
        path: str | os.PathLike[str],
        mode: str,  # noqa: ARG002 - the base class's signature; always "wb"
    ) -> Generator[Any, None, None]:
        content = _Content()
        yield content
        whole = Path(path)
        self._free.acquire()
        self._jobs[whole.name] = self._pool.submit(self._write, whole, content.parts)

    def finish(self) -> dict[str, FileEntry]:
        """Wait for all files; return their entries or raise the first OSError."""
        try:
            return {name: job.result() for name, job in self._jobs.items()}
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of what is not yet begun, and wait for the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _write(self, path: Path, parts: list[bytes]) -> FileEntry:
        try:
            return write_file(path, *parts)
        finally:
            parts.clear()
            self._free.release()


class _Content(io.RawIOBase):
    """Keeps what is written, without copying it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return sum(map(len, self.parts))

    def write(self, data: Any) -> int:  # noqa: ANN401 - whatever has a buffer
        self.parts.append(bytes(data))  # the same object where it is bytes already
        return len(self.parts[-1])


class _ContiguousSavePlanner(DefaultSavePlanner):
    """Hands contiguous tensors to the writer: safetensors refuses others."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:  # noqa: A002, ANN401
        value = super().transform_object(write_item, object)
        return value.contiguous() if isinstance(value, Tensor) else value


def _as_stored(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return views in the form that files have: a single number is a row of one."""
    return {
        name: tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach()
        for name, tensor in tensors.items()
    }


def _files_of(tensors: Mapping[str, Tensor], world_size: int) -> dict[str, int]:
    """Number the file that each tensor goes to, the same on every rank."""
    numbers: dict[str, int] = {}
    number, filled = 1, 0
    for name in sorted(tensors):
        size = tensors[name].numel() * tensors[name].element_size() // world_size
        if filled and filled + size > _FILE_BYTES:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += size
    return numbers


@contextmanager
def _without_hint() -> Generator[None, None, None]:
    with warnings.catch_warnings():
        # Says that one process saves alone, which is what was asked for.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _first_failure(
    error: CheckpointException, doing: str, kind: type[CheckpointError]
) -> CheckpointError:
    """Return our error for the lowest rank's failure.

    DCP collects what every rank raised, a keyboard interrupt included; that one goes on as it is.
    """
    for rank, (cause, _) in sorted(error.failures.items()):
        if not isinstance(cause, Exception):
            raise cause
        if isinstance(cause, OSError) and kind is CheckpointWriteError:
            return explain(cause, f"{doing} (rank {rank})")
        return kind(f"{doing} (rank {rank}): {type(cause).__name__}: {cause}")
    return kind(f"{doing}: {error}")
