"""Trying again, for a while: what is asked of a store elsewhere, with backoff and a deadline."""

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

import attrs

from foundry_sdk.checkpoint.objects import PassingError
from foundry_sdk.errors import CheckpointError, RemoteStoreError

VARIABLE: Final = "FOUNDRY_REMOTE_DEADLINE"
_DEADLINE: Final = 600.0
_ANSWER: Final = 60.0
_LOOK: Final = 0.2
# Not the module's generator: that one's state belongs to the run.
_jitter: Final = random.SystemRandom()
T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Patience:
    """How long and how often a request is tried.

    Attributes:
        deadline: seconds for one object, all attempts together.
        attempts: how often at most.
        first: seconds before the second attempt; doubled from one to the next, and shortened
            at random to no less than half, so that many processes don't return together.
        longest: upper end of that.
    """

    deadline: float = _DEADLINE
    attempts: int = 6
    first: float = 0.5
    longest: float = 30.0
    _given_up: threading.Event = attrs.field(factory=threading.Event, init=False)

    @classmethod
    def from_environment(cls) -> "Patience":
        """Return the default, with ``FOUNDRY_REMOTE_DEADLINE`` (seconds) where that is set.

        Raises:
            CheckpointError: it is no positive number.
        """
        given = os.environ.get(VARIABLE)
        if not given:
            return cls()
        try:
            seconds = float(given)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < float("inf"):
            raise CheckpointError(f"{VARIABLE}: expected seconds, more than 0, got {given!r}")
        return cls(deadline=seconds)

    @property
    def answer(self) -> float:
        """Seconds to wait for a server before the request is made anew."""
        return min(_ANSWER, self.deadline)

    def give_up(self) -> None:
        """Let every attempt that is under way, in whatever thread, fail soon."""
        self._given_up.set()

    def pause(self, seconds: float) -> None:
        """Wait, unless the run ends.

        Raises:
            RemoteStoreError: it does.
        """
        if self._given_up.wait(seconds):
            raise RemoteStoreError("broken off, as the run ends")

    def __call__(self, doing: str, action: Callable[[], T]) -> T:
        """Run ``action`` until it succeeds, fails for good, or patience ends.

        Args:
            doing: how messages begin, such as "cannot store x".
            action: makes one request; may run in another thread and be left behind there.

        Raises:
            RemoteStoreError: it failed to the end; says the last reason.
            CheckpointError: as ``action`` raised it.
        """
        started = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            left = self.deadline - (time.monotonic() - started)
            try:
                return self._within(doing, left, action)
            except PassingError as error:
                waited = min(self.longest, self.first * 2 ** (attempt - 1))
                waited *= _jitter.uniform(0.5, 1.0)
                spent = time.monotonic() - started
                if attempt >= self.attempts or spent + waited >= self.deadline:
                    raise RemoteStoreError(
                        f"{error} (given up after {attempt} attempt(s) in {spent:.1f} s)"
                    ) from error
            if self._given_up.wait(waited):
                raise RemoteStoreError(f"{doing}: broken off, as the run ends")

    def _within(self, doing: str, seconds: float, action: Callable[[], T]) -> T:
        """Run ``action`` in a thread that can be left behind: not every library has timeouts."""
        result: Future[T] = Future()

        def work() -> None:
            try:
                result.set_result(action())
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                result.set_exception(error)

        threading.Thread(target=work, name="remote-request", daemon=True).start()
        end = time.monotonic() + seconds
        while not result.done():
            left = end - time.monotonic()
            if left <= 0:
                raise RemoteStoreError(
                    f"{doing}: no answer within {self.deadline:g} s ({VARIABLE})"
                )
            if self._given_up.is_set():
                raise RemoteStoreError(f"{doing}: broken off, as the run ends")
            try:
                return result.result(timeout=min(left, _LOOK))
            except TimeoutError:
                if result.done():
                    break
        return result.result()
