"""``runtime_estimator``: how long a run still takes."""

from typing import Any

import attrs
from attrs import validators

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.events import EvaluationFinished, RunStarted, StepFinished
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.intervals import SECONDS_PER, ClockUnit, fraction_done
from foundry_sdk.units import Duration


@attrs.frozen(kw_only=True)
class RuntimeEstimatorSpec(CallbackSpec):
    """Logs ``time/remaining_estimate``.

    Attributes:
        skip_batches: first steps of a process that are not counted, as they warm up.
        time_unit: unit of the estimate.
    """

    kind = "runtime_estimator"
    skip_batches: int = attrs.field(default=1, validator=validators.ge(0))
    time_unit: ClockUnit = attrs.field(default="hours", validator=validators.in_(SECONDS_PER))

    def build(self, run: RunStarted) -> "RuntimeEstimator":
        """Return the callback."""
        return RuntimeEstimator(
            max_duration=run.max_duration,
            total_steps=run.total_steps,
            skip=self.skip_batches,
            seconds_per_unit=SECONDS_PER[self.time_unit],
        )


@attrs.define
class _Evaluations:
    """What is known of one eval loader: how often, until when, and how long each took."""

    count: int = 0
    fraction: float = 0.0
    seconds: float = 0.0
    first_seconds: float = 0.0

    def remaining_seconds(self) -> float:
        if not self.count or not self.fraction:
            return 0.0
        total = int(self.count / self.fraction + 1e-9)
        # The first one warms up (compiles, fills caches), so it is no measure of the others.
        others = self.count - 1
        mean = (self.seconds - self.first_seconds) / others if others else self.seconds
        return mean * max(0, total - self.count)


class RuntimeEstimator:
    """Extrapolates the training rate, plus the evaluations that are still to come."""

    key = RuntimeEstimatorSpec.kind

    def __init__(
        self,
        *,
        max_duration: Duration,
        total_steps: int | None,
        skip: int,
        seconds_per_unit: float,
    ) -> None:
        """Start counting after ``skip`` steps."""
        self._max_duration = max_duration
        self._total_steps = total_steps
        self._skip = skip
        self._seconds_per_unit = seconds_per_unit
        self._steps = 0
        self._start: tuple[float, float] | None = None
        self._fraction = 0.0
        self._evaluations: dict[str, _Evaluations] = {}

    @hookimpl
    def step_finished(self, event: StepFinished) -> dict[str, float] | None:
        """Return the estimate, from the first step that is not skipped."""
        if self._start is None and self._steps == self._skip:
            self._start = self._moment_before(event)
        self._steps += 1
        fraction = self._fraction_done(event)
        if fraction is None:
            return None
        self._fraction = fraction
        if self._start is None:
            return None
        start_seconds, start_fraction = self._start
        if fraction <= start_fraction:
            return None
        rate = (event.seconds - start_seconds) / (fraction - start_fraction)
        remaining = rate * (1.0 - fraction)
        remaining += sum(one.remaining_seconds() for one in self._evaluations.values())
        return {"time/remaining_estimate": remaining / self._seconds_per_unit}

    def _moment_before(self, event: StepFinished) -> tuple[float, float] | None:
        before = attrs.evolve(
            event,
            step=event.step - 1,
            samples=event.samples - event.step_samples,
            tokens=event.tokens - event.step_tokens,
            seconds=event.seconds - event.step_seconds,
        )
        fraction = self._fraction_done(before)
        return None if fraction is None else (before.seconds, fraction)

    def _fraction_done(self, event: StepFinished) -> float | None:
        return fraction_done(event, max_duration=self._max_duration, total_steps=self._total_steps)

    @hookimpl
    def evaluation_finished(self, event: EvaluationFinished) -> None:
        """Note how long it took; one before the first step says nothing about how often."""
        if event.step == 0:
            return
        one = self._evaluations.setdefault(event.label, _Evaluations())
        if one.count == 0:
            one.first_seconds = event.seconds
        one.count += 1
        one.seconds += event.seconds
        one.fraction = self._fraction

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned of the evaluations."""
        return {label: attrs.asdict(one) for label, one in self._evaluations.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was learned."""
        self._evaluations = {label: _Evaluations(**one) for label, one in state.items()}
