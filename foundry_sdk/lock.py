"""One process at a time in a folder: a lock that a killed process cannot leave behind."""

import errno
import fcntl
import json
import logging
import os
import socket
import time
import weakref
from pathlib import Path
from typing import Any, BinaryIO, Final

from foundry_sdk.errors import LockedRunError

_OWNER_WAIT_SECONDS: Final = 0.5
_HELD: Final = (errno.EAGAIN, errno.EACCES)
_log = logging.getLogger(__name__)


class FolderLock:
    """A held ``flock``. The kernel frees it when the process ends, however it ends.

    The file says who holds it, for the message of whoever comes second; its being there means
    nothing by itself.
    """

    def __init__(self, file: BinaryIO, *, held: bool) -> None:
        """Use ``take`` instead."""
        self._file = file
        self._held = held
        # A forked data worker would keep the lock of a killed run alive. Closing its copy of the
        # descriptor does not unlock; the parent's stays.
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _close_copy(reference))

    @classmethod
    def take(cls, path: Path) -> "FolderLock":
        """Lock ``path`` (made if missing) and write this process's host and pid into it.

        Raises:
            LockedRunError: another process holds it; the message names host and pid.
            OSError: the file can't be written.
        """
        file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                file.close()
                raise LockedRunError(
                    f"{path.parent} is in use by {_owner_text(path)}; give this run another "
                    "folder, or end that process"
                ) from error
            # A file system without locks (some network ones): nothing better is known there.
            _log.warning(
                "%s: cannot be locked (%s); see to it that one run writes here",
                path.parent,
                error.strerror,
            )
            return cls(file, held=False)
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        return cls(file, held=True)

    def release(self) -> None:
        """Unlock; again does nothing. The file stays, as removing it would let two in."""
        if self._held and not self._file.closed:
            # Closing would not do while a forked worker has a copy of the descriptor.
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock file ``path``."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _owner_text(path: Path) -> str:
    owner = _owner(path)
    if owner is None:
        return "another process, which has not said who it is"
    return f"process {owner.get('pid')} on host {owner.get('host')}"


def _owner(path: Path) -> dict[str, Any] | None:
    deadline = time.monotonic() + _OWNER_WAIT_SECONDS
    while True:
        try:
            owner = json.loads(path.read_text())
        except ValueError:
            # The other process has locked the file and is about to write into it.
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)
            continue
        return owner if isinstance(owner, dict) else None


def _close_copy(reference: "weakref.ref[FolderLock]") -> None:
    lock = reference()
    if lock is not None:
        lock._file.close()
