"""The hooks: one that a plugin package implements, and the moments of a run for callbacks."""

from collections.abc import Iterable
from typing import Final

import pluggy

from foundry_sdk.component import ComponentSpec
from foundry_sdk.events import (
    Answer,
    CheckpointSaved,
    EvaluationFinished,
    EvaluationStarted,
    Fail,
    GradientsReady,
    MetricsLogged,
    RunFinished,
    RunStarted,
    Skip,
    StepFinished,
    StepStarted,
    Stop,
    TableLogged,
)

ENTRY_POINT_GROUP: Final = "foundry_sdk"
hookspec = pluggy.HookspecMarker(ENTRY_POINT_GROUP)
hookimpl = pluggy.HookimplMarker(ENTRY_POINT_GROUP)


class FoundryHooks:
    """What foundry asks of a plugin when it is discovered."""

    @staticmethod
    @hookspec
    def foundry_components() -> Iterable[type[ComponentSpec]]:  # type: ignore[empty-body]
        """Return the component classes that this plugin offers."""


class RunEvents:
    """Moments of a run. A callback or logger implements those it wants, with ``@hookimpl``.

    They are called on every rank, in the order in which the spec lists the callbacks. The logger
    moments (``metrics_logged``, ``table_logged``) are called on rank 0 only.
    """

    @hookspec
    def run_started(self, event: RunStarted) -> None:
        """The first step is next."""

    @hookspec
    def step_started(self, event: StepStarted) -> None:
        """A step begins."""

    @hookspec
    def gradients_ready(self, event: GradientsReady) -> Skip | Stop | Fail | None:
        """Answer ``Skip`` or ``Fail`` to keep the update from being made.

        Implementing this makes every step wait for the device before its update. A subscriber
        that answers only where loss or gradient norm is not finite says so by an attribute
        ``answers_only_non_finite = True``; the device then decides, and the answer follows.
        """

    @hookspec
    def step_finished(self, event: StepFinished) -> Answer | None:
        """Return metrics to log, a ``Stop``, or a ``Table``."""

    @hookspec
    def evaluation_started(self, event: EvaluationStarted) -> None:
        """An eval loader begins."""

    @hookspec
    def evaluation_finished(self, event: EvaluationFinished) -> Answer | None:
        """Return metrics to log, a ``Stop``, or a ``Table``."""

    @hookspec
    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        """A checkpoint is committed."""

    @hookspec
    def metrics_logged(self, event: MetricsLogged) -> None:
        """Write the numbers somewhere (loggers)."""

    @hookspec
    def table_logged(self, event: TableLogged) -> None:
        """Write the rows somewhere (loggers)."""

    @hookspec
    def run_finished(self, event: RunFinished) -> None:
        """Flush and close."""
