"""The steps of a save, each on one rank; ``store.py`` has them in order and keeps ranks agreed."""

import json
import logging
import os
import platform
import secrets
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import attrs
from torch import Tensor

from foundry_sdk.checkpoint.files import FileEntry, explain, sync_folder, write_file
from foundry_sdk.checkpoint.layout import MANIFEST, Manifest, folder_name, unfinished_folders
from foundry_sdk.checkpoint.tensors import describe
from foundry_sdk.errors import CheckpointError, CheckpointWriteError, NoSpaceError
from foundry_sdk.faultpoints import reach
from foundry_sdk.lock import FolderLock

_log = logging.getLogger(__name__)
LOCK: Final = ".lock"
_PACKAGES: Final = ("foundry-sdk", "torch", "safetensors")


def take_folder(folder: Path) -> FolderLock:
    """Make and lock ``folder``, and remove what killed saves left in it.

    Raises:
        LockedRunError: another process has it.
        CheckpointError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock.take(folder / LOCK)
        for path in unfinished_folders(folder):
            _log.info("%s: removed what an interrupted save left", path)
            shutil.rmtree(path)
    except OSError as error:
        told = explain(error, f"save_folder {folder}")
        if isinstance(told, NoSpaceError):
            raise told from error
        raise CheckpointError(f"save_folder {folder}: cannot be written: {error}") from error
    return lock


def check_shared(folder: Path, rank: int) -> None:
    """Check that this rank sees what rank 0 made.

    Raises:
        CheckpointError: it does not.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: rank {rank} does not see the folder that rank 0 made; use a save_folder "
            "on a file system that all machines share"
        )


def begin(folder: Path, step: int, size: int) -> str:
    """Make the temporary folder for a checkpoint of ``size`` bytes and return its name.

    Raises:
        NoSpaceError: less than twice the size is free.
    """
    require_room(folder, size)
    name = f"{folder_name(step)}.tmp-{secrets.token_hex(4)}"
    reach("checkpoint.mkdir")
    (folder / name).mkdir()
    return name


def require_room(folder: Path, size: int) -> None:
    """Check that a disk has room for a checkpoint of ``size`` bytes.

    Raises:
        NoSpaceError: less than twice the size is free.
    """
    free = shutil.disk_usage(folder).free
    if free < 2 * size:
        raise NoSpaceError(
            f"save_folder {folder}: a checkpoint of {_gigabytes(size)} needs "
            f"{_gigabytes(2 * size)} free, there are {_gigabytes(free)}; free some, or keep "
            "fewer checkpoints with save_num_checkpoints_to_keep"
        )


def write_values(
    folder: Path, values: Mapping[str, Any], files: Mapping[str, FileEntry]
) -> dict[str, Any]:
    """Write one JSON file per entry of ``values``; return these files and ``files`` as JSON.

    Raises:
        CheckpointWriteError: a value is none that JSON has.
    """
    entries = dict(files)
    for name, value in values.items():
        try:
            text = json.dumps(value, indent=1)
        except (TypeError, ValueError) as error:
            raise CheckpointWriteError(f"{name}: not a JSON value: {error}") from error
        entries[name] = write_file(folder / name, text.encode())
    return {name: attrs.asdict(entry) for name, entry in entries.items()}


def manifest_of(
    step: int, parts: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> Manifest:
    """Return the manifest over every rank's part, as ``write_values`` returned it."""
    versions = {name: _version(name) for name in _PACKAGES}
    return Manifest(
        step=step,
        world_size=len(parts),
        versions={**versions, "python": platform.python_version()},
        files={name: FileEntry(**entry) for part in parts for name, entry in part.items()},
        tensors=describe(tensors),
    )


def commit(temporary: Path, final: Path, manifest: Manifest) -> None:
    """Add the manifest and give the folder its name: from here on the checkpoint exists."""
    sync_folder(temporary)
    write_file(temporary / MANIFEST, manifest.render())
    sync_folder(temporary)
    if final.exists():  # damaged, or this step would not be written again
        delete(final)
    reach("checkpoint.rename")
    os.rename(temporary, final)
    sync_folder(final.parent)
    reach("checkpoint.committed")


def delete(path: Path) -> None:
    """Delete a step folder so that a half-deleted one is never taken for a checkpoint."""
    doomed = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    reach("checkpoint.prune")
    os.rename(path, doomed)
    reach("checkpoint.prune")
    shutil.rmtree(doomed)


def drop(temporary: Path) -> None:
    """Remove a save that failed; what cannot be removed now goes at the next start."""
    shutil.rmtree(temporary, ignore_errors=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source folder
        return "not installed"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3f} GB"
