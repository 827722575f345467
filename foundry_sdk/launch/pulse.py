"""How far a rank is, told to the launcher through a few shared bytes.

A rank counts each collective as it enters it and as it leaves. All ranks make the same ones in
the same order, so of ranks that stand still, the one with the lowest count holds the others up.
"""

import faulthandler
import mmap
import os
import signal
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

VARIABLE: Final = "FOUNDRY_PULSE_FILE"
"""Set by the launcher: where a worker tells how far it is; its stacks go beside it."""
STACKS: Final = ".stacks"
DUMP_SIGNAL: Final = signal.SIGUSR2
_FORM: Final = struct.Struct("<qq?dd32s")  # count twice, so that a torn reading shows


@attrs.frozen(kw_only=True)
class Beat:
    """The last sign of life of a rank.

    Attributes:
        count: collectives entered and left.
        waits: whether the rank is inside one, or failed in it.
        timeout: seconds that ranks wait for each other.
        at: when it was given, seconds on the machine's monotonic clock.
        inside: the collective that it is in or was in last.
    """

    count: int
    waits: bool
    timeout: float
    at: float
    inside: str


class Pulse:
    """The worker's side; without a launcher of ours it does nothing."""

    def __init__(self, path: Path | None, timeout: float) -> None:
        """Begin to tell, and be ready to write down the stacks of all threads on a signal.

        Args:
            path: a file that is made; None = nobody wants to know.
            timeout: seconds that ranks wait for each other.
        """
        self._timeout = timeout
        self._count = 0
        self._memory: mmap.mmap | None = None
        if path is None:
            return
        # It stays open: the signal may come at any time until the process ends.
        self._stacks = path.with_suffix(STACKS).open("ab", buffering=0)
        faulthandler.register(DUMP_SIGNAL, file=self._stacks, all_threads=True)
        part = path.with_suffix(".new")
        part.write_bytes(bytes(_FORM.size))
        with part.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _FORM.size)
        self._beat("start", waits=False)
        os.replace(part, path)

    @classmethod
    def begin(cls, environ: Mapping[str, str], timeout: float) -> "Pulse":
        """Return the pulse that the launcher asked for in ``environ``."""
        path = environ.get(VARIABLE)
        return cls(None if path is None else Path(path), timeout)

    @contextmanager
    def within(self, collective: str) -> Iterator[None]:
        """Be inside ``collective`` while entered."""
        if self._memory is None:
            yield
            return
        self._count += 1
        self._beat(collective, waits=True)
        try:
            yield
        except BaseException:
            self._count += 1  # not told: a rank that fails in a collective was there in time
            raise
        self._count += 1
        self._beat(collective, waits=False)

    def _beat(self, name: str, *, waits: bool) -> None:
        if self._memory is not None:
            count, text, now = self._count, name.encode()[:32], time.monotonic()
            _FORM.pack_into(self._memory, 0, count, count, waits, self._timeout, now, text)


def read_beat(path: Path) -> Beat | None:
    """Return a rank's last sign of life; None where it has not begun."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    count, again, waits, timeout, at, name = _FORM.unpack(data)
    if count != again:  # caught while it is written: as good as a beat just now
        at = time.monotonic()
    inside = name.rstrip(b"\0").decode("utf-8", errors="replace")
    return Beat(count=count, waits=waits, timeout=timeout, at=at, inside=inside)
