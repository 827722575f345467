"""One writer per folder: a lock that a killed process cannot leave behind."""

import errno
import fcntl
import json
import logging
import os
import socket
import weakref
from pathlib import Path
from typing import Final

from foundry_sdk.errors import LockedRunError

LOCK: Final = ".lock"
_HELD: Final = (errno.EAGAIN, errno.EACCES)
_log = logging.getLogger(__name__)


class FolderLock:
    """An exclusive ``flock`` on ``folder/.lock``; the kernel drops it when the process ends.

    The file says who holds it, for the message of whoever comes second; its being there means
    nothing by itself.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            LockedRunError: another process has it.
            OSError: the folder cannot be written.
        """
        self.path = folder / LOCK
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # A forked data worker would keep the lock of a killed run. Closing a copy of the
        # descriptor leaves the lock with the parent.
        own = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _close_copy(own))
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                holder = _read_holder(self._descriptor)
                self.release()
                raise LockedRunError(
                    f"{folder} is in use by {holder}; give this run another folder, or end that one"
                ) from None
            # A file system without locks (some network ones): nothing better is known there.
            _log.warning(
                "%s: cannot be locked (%s); see to it that one run writes here",
                folder,
                error.strerror,
            )
            return
        text = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text, 0)

    def release(self) -> None:
        """Give the lock back; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.release()


def _close_copy(reference: "weakref.ref[FolderLock]") -> None:
    lock = reference()
    if lock is not None:
        lock.release()


def _read_holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):  # it has the lock and is about to write its name
        return "another process"
