"""``nan_monitor`` and ``loss_spike_guard``: keep a bad gradient out of the weights."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import attrs
from attrs import validators

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.errors import SpecError
from foundry_sdk.events import Fail, GradientsReady, RunStarted, Skip, StepFinished, Stop
from foundry_sdk.hookspecs import hookimpl

_SHOWN_SAMPLES = 16


@attrs.frozen(kw_only=True)
class NaNMonitorSpec(CallbackSpec):
    """Acts when the loss or the gradient norm is NaN or infinite, before the update.

    Attributes:
        policy: ``stop`` ends the run with an error; ``skip`` leaves the update out.
        max_consecutive_skips: so many skips in a row are borne; the next one is an error.
    """

    kind = "nan_monitor"
    policy: Literal["stop", "skip"] = attrs.field(
        default="stop", validator=validators.in_(("stop", "skip"))
    )
    max_consecutive_skips: int = attrs.field(default=10, validator=validators.ge(1))

    def build(self, run: RunStarted) -> "NaNMonitor":  # noqa: ARG002 - the family's signature
        """Return the callback."""
        return NaNMonitor(self)


class NaNMonitor:
    """Decides from numbers that are equal on every rank, so all ranks decide alike."""

    key = NaNMonitorSpec.kind
    answers_only_non_finite = True

    def __init__(self, spec: NaNMonitorSpec) -> None:
        """No skip yet."""
        self._spec = spec
        self._skips = 0

    @hookimpl
    def gradients_ready(self, event: GradientsReady) -> Skip | Fail | None:
        """Answer where a number is not finite."""
        if math.isfinite(event.loss) and math.isfinite(event.gradient_norm):
            self._skips = 0
            return None
        found = f"step {event.step}: loss {event.loss}, gradient norm {event.gradient_norm}"
        self._skips += 1
        if self._spec.policy == "skip" and self._skips <= self._spec.max_consecutive_skips:
            return Skip(reason=f"nan_monitor: {found}")
        after = f" after {self._skips - 1} skipped steps in a row" if self._skips > 1 else ""
        return Fail(
            reason=f"nan_monitor: {found}{after}; the update was not made. Samples of this rank: "
            f"{_listed(event.sample_ids)}. Last checkpoint: {event.last_checkpoint or 'none'}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the skips in a row."""
        return {"skips": self._skips}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self._skips = int(state["skips"])


def _listed(sample_ids: Sequence[int] | None) -> str:
    if sample_ids is None:
        return "not numbered"
    shown = ", ".join(str(sample) for sample in sample_ids[:_SHOWN_SAMPLES])
    more = len(sample_ids) - _SHOWN_SAMPLES
    return f"{shown} and {more} more" if more > 0 else shown


@attrs.frozen(kw_only=True)
class LossSpikeGuardSpec(CallbackSpec):
    """Acts when a step's loss stands far above those of the steps before it.

    Attributes:
        policy: ``skip`` leaves the update out; ``stop`` leaves it out and ends the run, saved.
        window: so many accepted losses are compared with; nothing is done before there are.
        sigma: a spike is more than so many standard deviations above their mean.
        factor: a spike is more than so many times their mean. With both, either suffices.
        max_consecutive_skips: so many skips in a row are borne; then the run stops, as the loss
            has changed its level and is no spike.
    """

    kind = "loss_spike_guard"
    policy: Literal["skip", "stop"] = attrs.field(
        default="skip", validator=validators.in_(("skip", "stop"))
    )
    window: int = attrs.field(default=100, validator=validators.ge(2))
    sigma: float | None = 6.0
    factor: float | None = attrs.field(
        default=None, validator=validators.optional(validators.gt(1.0))
    )
    max_consecutive_skips: int = attrs.field(default=10, validator=validators.ge(1))

    def __attrs_post_init__(self) -> None:
        """Refuse a guard without a criterion.

        Raises:
            SpecError: neither ``sigma`` nor ``factor`` is set, or ``sigma`` is not positive.
        """
        if self.sigma is not None and self.sigma <= 0:
            raise SpecError(f"loss_spike_guard: sigma must be greater than 0, got {self.sigma}")
        if self.sigma is None and self.factor is None:
            raise SpecError("loss_spike_guard: set sigma, factor or both; else nothing is a spike")

    def build(self, run: RunStarted) -> "LossSpikeGuard":  # noqa: ARG002
        """Return the callback."""
        return LossSpikeGuard(self)


class LossSpikeGuard:
    """Compares with the mean and the (population) standard deviation of the window."""

    key = LossSpikeGuardSpec.kind

    def __init__(self, spec: LossSpikeGuardSpec) -> None:
        """Start with an empty window."""
        self._spec = spec
        self._losses: deque[float] = deque(maxlen=spec.window)
        self._skips = 0
        self._stop: str | None = None

    @hookimpl
    def gradients_ready(self, event: GradientsReady) -> Skip | None:
        """Answer ``Skip`` at a spike. A loss that is not finite is ``nan_monitor``'s."""
        if not math.isfinite(event.loss):
            return None
        limit = self._limit()
        if limit is None or event.loss <= limit:
            self._losses.append(event.loss)
            self._skips = 0
            return None
        self._skips += 1
        reason = (
            f"loss_spike_guard: step {event.step}: loss {event.loss:.4f} is above {limit:.4f}, "
            f"the limit from the last {self._spec.window} losses"
        )
        if self._spec.policy == "stop":
            self._stop = reason
        elif self._skips > self._spec.max_consecutive_skips:
            self._stop = f"{reason}; {self._skips} steps in a row"
        return Skip(reason=reason)

    @hookimpl
    def step_finished(self, event: StepFinished) -> Stop | None:  # noqa: ARG002
        """Ask for the end here, where the weights are still those before the spike."""
        reason, self._stop = self._stop, None
        return None if reason is None else Stop(reason=reason)

    def state_dict(self) -> dict[str, Any]:
        """Return the window and the skips in a row."""
        return {"losses": list(self._losses), "skips": self._skips}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved window."""
        self._losses = deque(map(float, state["losses"]), maxlen=self._spec.window)
        self._skips = int(state["skips"])

    def _limit(self) -> float | None:
        if len(self._losses) < self._spec.window:
            return None
        mean = math.fsum(self._losses) / len(self._losses)
        limits: list[float] = []
        if self._spec.sigma is not None:
            squares = math.fsum((loss - mean) ** 2 for loss in self._losses)
            limits.append(mean + self._spec.sigma * math.sqrt(squares / len(self._losses)))
        if self._spec.factor is not None:
            limits.append(mean * self._spec.factor)
        return min(limits)
