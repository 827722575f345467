"""Writing files that survive a crash, with the digest of what was meant to be in them."""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from foundry_sdk.errors import CheckpointWriteError, NoSpaceError
from foundry_sdk.faultpoints import reach

_PIECE: Final = 4 * 2**20
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@attrs.frozen
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file."""

    size: int
    sha256: str


def write_file(path: Path, *parts: bytes) -> FileEntry:
    """Write a new file of ``parts`` and make its content durable.

    The digest is of the bytes in memory, not of what the disk gave back, so it also finds what
    was damaged while it was written.

    Raises:
        OSError: it could not be written.
    """
    digest, size = hashlib.sha256(), 0
    reach("checkpoint.create")
    with path.open("xb", buffering=0) as file:
        for piece in _pieces(parts):
            reach("checkpoint.write")
            written = 0
            while written < len(piece):
                written += file.write(piece[written:]) or 0
            digest.update(piece)
            size += written
        reach("checkpoint.fsync")
        os.fsync(file.fileno())
    return FileEntry(size, digest.hexdigest())


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable: what was created, renamed and removed there."""
    reach("checkpoint.fsync_folder")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_file(path: Path) -> FileEntry:
    """Read a whole file and return its size and digest."""
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileEntry(file.tell(), digest.hexdigest())


def explain(error: OSError, doing: str) -> CheckpointWriteError:
    """Return the error to raise for ``error``, which came up ``doing`` some writing."""
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in _NO_SPACE:
        return NoSpaceError(
            f"{doing}: no space left{place}: {error.strerror}; free some, or keep fewer "
            "checkpoints with save_num_checkpoints_to_keep"
        )
    return CheckpointWriteError(f"{doing}: {error.strerror or error}{place}")


def _pieces(parts: Sequence[bytes]) -> Iterator[memoryview]:
    """Cut each part into at least two pieces, so that a process can die with half a file written.

    Each piece is written and digested while it is in the processor's cache.
    """
    for part in parts:
        view = memoryview(part)
        size = max(1, min(_PIECE, (len(view) + 1) // 2))
        for start in range(0, len(view), size):
            yield view[start : start + size]
