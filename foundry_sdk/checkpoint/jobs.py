"""Work that runs beside the training, and how ranks wait for it together."""

import threading
from collections.abc import Callable
from typing import Final

from foundry_sdk.checkpoint.ranks import Ranks, on_every_rank
from foundry_sdk.errors import FoundryError

_LOOK: Final = 1.0
"""Seconds that a rank waits for its own job before it asks the others about theirs."""


class Job:
    """Something that runs in a thread of its own, for which the end of the process won't wait."""

    def __init__(self, action: Callable[[], None]) -> None:
        """Start ``action``."""
        self._action = action
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint-copy", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._action()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            self._error = error

    def wait(self, seconds: float) -> None:
        """Wait until it is done, at most ``seconds``."""
        self._thread.join(seconds)

    def done(self) -> bool:
        """Return whether it ended, well or not."""
        return not self._thread.is_alive()

    def result(self) -> None:
        """Raise what the action raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def failure(self) -> str | None:
        """Return why the action failed, if it did."""
        self._thread.join()
        if self._error is None or isinstance(self._error, FoundryError):
            return None if self._error is None else str(self._error)
        return f"{type(self._error).__name__}: {self._error}"


def wait_together(ranks: Ranks, about: str, job: Job | None) -> None:
    """Return on every rank when every rank's job is done.

    A collective has a time limit that says nothing of how long a transfer may take, so ranks
    meet again and again.
    """

    def look() -> bool:
        if job is not None:
            job.wait(_LOOK)
        return job is None or job.done()

    while not all(on_every_rank(ranks, about, look)):
        pass
