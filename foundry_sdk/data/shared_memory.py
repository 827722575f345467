"""Names of shared memory that belong to a process, and what is left of processes that are dead.

mosaicml-streaming keeps which shards are present in a few small objects in ``/dev/shm``, under
consecutive numbers. After ``kill -9`` they stay, and the next run on the same folder is refused.
Here each dataset gets a number of its own and notes who made it, so that leftovers of dead
processes, and only those, can be taken away.
"""

import fcntl
import json
import os
import re
import secrets
from pathlib import Path
from tempfile import gettempdir
from typing import IO, Any, Final

from foundry_sdk.errors import DataError

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # where Linux keeps it, not a scratch file
_FIRST: Final = 10**12
_NAME: Final = re.compile(r"(\d{13})_[a-z_]+")
_LOCK_NAME: Final = ".foundry-cache.lock"


def new_prefix() -> int:
    """Return a number for the shared memory of one dataset: 13 digits, drawn at random."""
    return _FIRST + secrets.randbelow(9 * _FIRST)


def owner() -> bytes:
    """Return what the ``locals`` object of a dataset says of the process that made it."""
    return json.dumps({"pid": os.getpid(), **_identity(os.getpid())}).encode()


def reclaim() -> list[str]:
    """Remove shared memory and lock files that dead processes of this machine left behind.

    What a living process made, what another container made (its process numbers mean nothing
    here) and what is not ours in the first place is left alone.

    Returns:
        The names that were removed.
    """
    removed: list[str] = []
    for path in SHARED_MEMORY.glob(f"{'[0-9]' * 13}_locals"):
        try:
            if path.stat().st_uid != os.getuid():  # whose process may be hidden from us
                continue
            made_by = json.loads(path.read_bytes().strip(b"\0"))
            is_left = isinstance(made_by, dict) and _is_left_over(made_by)
        except (OSError, ValueError):
            continue
        if is_left:
            removed.extend(remove(int(path.name.partition("_")[0])))
    return removed


def remove(prefix: int) -> list[str]:
    """Remove all objects and lock files of one dataset; return their names."""
    removed = []
    for folder in (SHARED_MEMORY, Path(gettempdir())):
        # "locals" goes last: should this be interrupted, the rest is still found again.
        paths = sorted(folder.glob(f"{prefix}_*"), key=lambda path: path.name.endswith("_locals"))
        for path in paths:
            if _NAME.fullmatch(path.name):
                path.unlink(missing_ok=True)
                removed.append(path.name)
    return removed


class CacheLock:
    """Holds a folder, into which shards are downloaded, against every other dataset.

    The lock ends with the process, however that ends.
    """

    def __init__(self, folder: Path, *, what: str) -> None:
        """Take the lock.

        Raises:
            DataError: another run, or another loader of this one, downloads into ``folder``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / _LOCK_NAME).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._file)
            self._file.close()
            raise DataError(
                f"{what}: {folder} is the download folder of {holder} already; two that "
                "download into one folder overwrite each other's shards: give each its own local:"
            ) from None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"process {os.getpid()} ({what})")
        self._file.flush()

    def close(self) -> None:
        """Give the lock back; in a forked process: let it be the parent's alone."""
        self._file.close()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(200) or "another process"


def _identity(pid: int) -> dict[str, Any]:
    """Return what tells process ``pid`` from an earlier or foreign one with the same number."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = stat.rpartition(")")[2].split()  # the name, in parentheses, may hold blanks
    if fields[0] in {"Z", "X"}:
        raise ProcessLookupError(f"process {pid} has ended and waits to be collected")
    return {
        "started": int(fields[19]),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        "namespace": os.stat("/proc/self/ns/pid").st_ino,
    }


def _is_left_over(made_by: dict[str, Any]) -> bool:
    here = _identity(os.getpid())
    if any(made_by.get(key) != here[key] for key in ("boot", "namespace")):
        return False
    try:
        return bool(_identity(int(made_by["pid"]))["started"] != made_by.get("started"))
    except (FileNotFoundError, ProcessLookupError):
        return True
    except (KeyError, TypeError, ValueError):
        return False
