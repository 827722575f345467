"""``run_timeout``: end a process in which nothing happens any more."""

import faulthandler
from typing import Final

import attrs
from attrs import validators

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.events import (
    CheckpointSaved,
    EvaluationFinished,
    EvaluationStarted,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
)
from foundry_sdk.hookspecs import hookimpl

_DEFAULT_SECONDS: Final = 1800
_STDERR: Final = 2


@attrs.frozen(kw_only=True)
class RunTimeoutSpec(CallbackSpec):
    """Ends the process, with the stacks of all its threads on stderr, after a silence.

    Attributes:
        timeout: seconds from one event of the run to the next; more than the longest evaluation
            or checkpoint takes.
    """

    kind = "run_timeout"
    timeout: float = attrs.field(default=_DEFAULT_SECONDS, validator=validators.gt(0))

    def build(self, run: RunStarted) -> "RunTimeout":  # noqa: ARG002 - the family's signature
        """Return the callback."""
        return RunTimeout(self.timeout)


class RunTimeout:
    """A timer in a thread of C, so it also goes off where Python hangs in a collective."""

    key = RunTimeoutSpec.kind

    def __init__(self, seconds: float) -> None:
        """Allow ``seconds`` of silence."""
        self._seconds = seconds

    @hookimpl
    def run_started(self, event: RunStarted) -> None:  # noqa: ARG002 - here and below
        """Start the timer."""
        self._restart()

    @hookimpl
    def step_started(self, event: StepStarted) -> None:  # noqa: ARG002
        """Start the timer anew."""
        self._restart()

    @hookimpl
    def step_finished(self, event: StepFinished) -> None:  # noqa: ARG002
        """Start the timer anew."""
        self._restart()

    @hookimpl
    def evaluation_started(self, event: EvaluationStarted) -> None:  # noqa: ARG002
        """Start the timer anew."""
        self._restart()

    @hookimpl
    def evaluation_finished(self, event: EvaluationFinished) -> None:  # noqa: ARG002
        """Start the timer anew."""
        self._restart()

    @hookimpl
    def checkpoint_saved(self, event: CheckpointSaved) -> None:  # noqa: ARG002
        """Start the timer anew."""
        self._restart()

    @hookimpl
    def run_finished(self, event: RunFinished) -> None:  # noqa: ARG002
        """Stop the timer."""
        faulthandler.cancel_dump_traceback_later()

    def _restart(self) -> None:
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=_STDERR)
