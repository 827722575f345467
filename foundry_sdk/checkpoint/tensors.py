"""Tensors of a checkpoint as safetensors, through torch.distributed.checkpoint; no pickle.

Sharded tensors (DTensor) are written by the ranks that hold them and read by any number of ranks;
plain ones, equal on every rank, are written once.
"""

import os
import warnings
from collections.abc import Generator, Mapping
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

from foundry_sdk.checkpoint.files import DigestWriter, FileEntry, explain
from foundry_sdk.checkpoint.layout import TensorEntry
from foundry_sdk.errors import CheckpointError, CheckpointWriteError

_FILE_BYTES: Final = 2**30
"""Upper end of a tensor file's size: a rank holds one file's content a second time in memory."""


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
) -> dict[str, FileEntry]:
    """Write this rank's share into ``folder``; called on every rank. Return the files it wrote.

    Raises:
        CheckpointError: a rank could not write; raised on every rank.
    """
    if not tensors:
        return {}
    files = _RecordingFileSystem()
    writer = HuggingFaceStorageWriter(
        str(folder),
        fqn_to_index_mapping=_files_of(tensors, world_size),
        save_distributed=True,
    )
    writer.fs = files
    writer.sync_files = False  # a DigestWriter does that when it is closed
    try:
        with _without_hint():
            save(
                _as_stored(tensors),
                storage_writer=writer,
                planner=_ContiguousSavePlanner(),
                no_dist=world_size == 1,
            )
    except CheckpointException as error:
        raise _first_failure(error, f"writing {folder}", CheckpointWriteError) from error
    return files.entries()


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


class _RecordingFileSystem(FileSystem):
    """Writes through DigestWriters and keeps their entries."""

    def __init__(self) -> None:
        self._writers: list[DigestWriter] = []

    @contextmanager
    def create_stream(
        self,
        path: str | os.PathLike[str],
        mode: str,  # noqa: ARG002 - the base class's signature; always "wb"
    ) -> Generator[Any, None, None]:
        writer = DigestWriter(Path(path))
        self._writers.append(writer)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.close()

    def entries(self) -> dict[str, FileEntry]:
        return {w.path.name: w.entry for w in self._writers if w.entry is not None}


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
