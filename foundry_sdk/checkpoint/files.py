"""Writing files that survive a crash, with the digest of what was meant to be in them."""

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk.errors import CheckpointWriteError, NoSpaceError
from foundry_sdk.faultpoints import reach

_PIECE: Final = 64 * 2**20
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@attrs.frozen
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file."""

    size: int
    sha256: str


class DigestWriter(io.RawIOBase):
    """A file being written, digested on its way; ``close`` makes it durable.

    The digest is of the bytes in memory, not of what the disk gave back, so it also finds what
    was damaged while it was written. ``entry`` is None until the file is safely closed.
    """

    def __init__(self, path: Path) -> None:
        """Create ``path``, which must not exist."""
        super().__init__()
        reach("checkpoint.create")
        self.path = path
        self.entry: FileEntry | None = None
        self._file = path.open("xb", buffering=0)
        self._digest = hashlib.sha256()
        self._size = 0
        self._abandoned = False

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._size

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._file.fileno()

    def write(self, data: Any) -> int:  # noqa: ANN401 - whatever has a buffer
        """Write all of ``data``."""
        view = memoryview(data).cast("B")
        for piece in _pieces(view):
            reach("checkpoint.write")
            written = 0
            while written < len(piece):
                written += self._file.write(piece[written:]) or 0
            self._digest.update(piece)
            self._size += len(piece)
        return len(view)

    def abandon(self) -> None:
        """Close without making the content durable; it is going to be deleted."""
        self._abandoned = True
        self.close()

    def close(self) -> None:
        """Push the content to the disk and close the file."""
        if self.closed:
            return
        try:
            if not self._abandoned:
                reach("checkpoint.fsync")
                os.fsync(self._file.fileno())
                self.entry = FileEntry(self._size, self._digest.hexdigest())
        finally:
            self._file.close()
            super().close()


def write_file(path: Path, data: bytes) -> FileEntry:
    """Write a new file and make it durable."""
    writer = DigestWriter(path)
    try:
        writer.write(data)
    except BaseException:
        writer.abandon()
        raise
    writer.close()
    assert writer.entry is not None  # noqa: S101 - close without an error sets it
    return writer.entry


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


def _pieces(view: memoryview) -> Iterator[memoryview]:
    """Cut into at least two pieces, so that a process can die with a file half written."""
    size = max(1, min(_PIECE, (len(view) + 1) // 2))
    for start in range(0, len(view), size):
        yield view[start : start + size]
