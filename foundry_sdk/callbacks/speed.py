"""``speed_monitor``: throughput, utilization and times."""

import logging
from collections import deque
from typing import Any

import attrs
from attrs import validators

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.callbacks.peaks import peak_flops
from foundry_sdk.events import EvaluationFinished, RunStarted, StepFinished
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.intervals import SECONDS_PER, ClockUnit

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class SpeedMonitorSpec(CallbackSpec):
    """Logs rates over the last ``window_size`` steps, and times.

    Attributes:
        window_size: steps that a rate is taken over; none is logged before so many are made.
        gpu_flops_available: peak FLOP/s of one device; by default from its name and the
            precision.
        time_unit: unit of ``time/train``, ``time/val`` and ``time/total``.
    """

    kind = "speed_monitor"
    window_size: int = attrs.field(default=100, validator=validators.ge(1))
    gpu_flops_available: float | None = attrs.field(
        default=None, validator=validators.optional(validators.gt(0))
    )
    time_unit: ClockUnit = attrs.field(default="hours", validator=validators.in_(SECONDS_PER))

    def build(self, run: RunStarted) -> "SpeedMonitor":
        """Return the callback; says so once where the device's peak is not known."""
        peak = self.gpu_flops_available or peak_flops(run.device_name, run.precision)
        if peak is None and run.device != "cpu" and run.flops_per_token is not None:
            _log.warning(
                "speed_monitor: the peak of %r at %s is not known, so no MFU is logged; set "
                "callbacks.speed_monitor.gpu_flops_available",
                run.device_name,
                run.precision,
            )
        return SpeedMonitor(
            window_size=self.window_size,
            seconds_per_unit=SECONDS_PER[self.time_unit],
            world_size=run.world_size,
            flops_per_token=run.flops_per_token,
            peak=peak,
        )


@attrs.frozen
class _Moment:
    """Running totals at the end of a step."""

    seconds: float
    samples: int
    tokens: int
    wall_seconds: float
    data_seconds: float


class SpeedMonitor:
    """Rates are those of all ranks together; ``throughput/device/...`` those of one.

    FLOPs are those of real tokens: padding is work, but not of use.
    """

    key = SpeedMonitorSpec.kind

    def __init__(
        self,
        *,
        window_size: int,
        seconds_per_unit: float,
        world_size: int,
        flops_per_token: int | None,
        peak: float | None,
    ) -> None:
        """Start with an empty window."""
        # One more than the window: a rate is a difference of two moments.
        self._moments: deque[_Moment] = deque(maxlen=window_size + 1)
        self._seconds_per_unit = seconds_per_unit
        self._world_size = world_size
        self._flops_per_token = flops_per_token
        self._peak = peak
        self._wall_seconds = 0.0
        self._data_seconds = 0.0
        self._eval_seconds = 0.0

    @hookimpl
    def step_finished(self, event: StepFinished) -> dict[str, float]:
        """Return the rates, if the window is full, and the times."""
        self._wall_seconds += event.step_seconds
        self._data_seconds += event.data_seconds
        self._moments.append(
            _Moment(
                event.seconds, event.samples, event.tokens, self._wall_seconds, self._data_seconds
            )
        )
        unit = self._seconds_per_unit
        metrics = {
            "time/train": event.seconds / unit,
            "time/val": self._eval_seconds / unit,
            "time/total": (event.seconds + self._eval_seconds) / unit,
        }
        if len(self._moments) == self._moments.maxlen:
            metrics |= self._rates()
        return metrics

    @hookimpl
    def evaluation_finished(self, event: EvaluationFinished) -> None:
        """Add to ``time/val``."""
        self._eval_seconds += event.seconds

    def state_dict(self) -> dict[str, Any]:
        """Return the time spent in evaluation. The window is not kept: it is of one process."""
        return {"eval_seconds": self._eval_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved time."""
        self._eval_seconds = float(state["eval_seconds"])

    def _rates(self) -> dict[str, float]:
        first, last = self._moments[0], self._moments[-1]
        seconds = last.seconds - first.seconds
        if seconds <= 0:
            return {}
        rates = {
            "batches_per_sec": (len(self._moments) - 1) / seconds,
            "samples_per_sec": (last.samples - first.samples) / seconds,
            "tokens_per_sec": (last.tokens - first.tokens) / seconds,
        }
        if self._flops_per_token is not None:
            rates["flops_per_sec"] = rates["tokens_per_sec"] * self._flops_per_token
        metrics = {f"throughput/{name}": rate for name, rate in rates.items()}
        metrics |= {
            f"throughput/device/{name}": rate / self._world_size for name, rate in rates.items()
        }
        if self._peak is not None and self._flops_per_token is not None:
            metrics["throughput/device/mfu"] = (
                metrics["throughput/device/flops_per_sec"] / self._peak
            )
        wall_seconds = last.wall_seconds - first.wall_seconds
        if wall_seconds > 0:
            metrics["throughput/data_wait_share"] = (
                last.data_seconds - first.data_seconds
            ) / wall_seconds
        return metrics
