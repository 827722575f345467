"""Ending a run because somebody asks for it: a flag at the first signal, the end at the second."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SAME_REQUEST_SECONDS: Final = 1.0
"""Signals this close together are one request: a terminal and a launcher both send theirs."""


class StopRequest:
    """While entered, SIGTERM, SIGINT and SIGUSR1 ask for a stop instead of ending the process.

    The loop polls ``reason`` at each step's end, where all ranks agree to stop and save. A second
    signal, a second or more later, ends the process at once, as it would without this class.

    Only the main thread of a process can have handlers; elsewhere signals keep their meaning.
    """

    def __init__(self) -> None:
        """Change nothing yet."""
        self._number: int | None = None
        self._at = 0.0
        self._owner = 0
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    @property
    def number(self) -> int | None:
        """The number of the signal that came first, or None."""
        return self._number

    @property
    def reason(self) -> str | None:
        """Such as ``"signal SIGTERM"``, or None."""
        return None if self._number is None else f"signal {signal.Signals(self._number).name}"

    def __enter__(self) -> "StopRequest":
        """Install the handlers."""
        self._owner = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in _HANDLED:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._owner:
            # A forked data worker: it must end when it is told to, and only then. Ctrl-C reaches
            # every process of a terminal, and the run needs its workers until it has stopped.
            if number == signal.SIGTERM:
                _end_by(number)
            return
        now = time.monotonic()
        if self._number is None:
            self._number, self._at = number, now
        elif now - self._at >= _SAME_REQUEST_SECONDS:
            _end_by(number)


def _end_by(number: int) -> None:
    """End this process as if the signal had no handler, so that its parent sees which it was."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
