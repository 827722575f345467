"""``optimizer_monitor``: norms of gradients, parameters and optimizer state, by parameter."""

from collections.abc import Mapping

import attrs
from attrs import validators

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.events import GradientsReady, Probe, RunStarted, StepFinished
from foundry_sdk.hookspecs import hookimpl


@attrs.frozen(kw_only=True)
class OptimizerMonitorSpec(CallbackSpec):
    """Logs L2 norms: ``l2_norm/grad/global``, ``l2_norm/{grad,param,moment,...}/NAME``.

    The global norm is that before clipping; those by parameter are of the gradients that the
    update is made with, so after clipping.

    Attributes:
        log_optimizer_metrics: parameters and optimizer state too, not gradients alone.
        batch_log_interval: steps from one time to the next; each reads every parameter.
    """

    kind = "optimizer_monitor"
    log_optimizer_metrics: bool = True
    batch_log_interval: int = attrs.field(default=10, validator=validators.ge(1))

    def build(self, run: RunStarted) -> "OptimizerMonitor":
        """Return the callback."""
        return OptimizerMonitor(
            run.probe, with_state=self.log_optimizer_metrics, interval=self.batch_log_interval
        )


class OptimizerMonitor:
    """Collects gradient norms while there are gradients, and logs when the step is done."""

    key = OptimizerMonitorSpec.kind

    def __init__(self, probe: Probe, *, with_state: bool, interval: int) -> None:
        """Read from ``probe`` every ``interval`` steps."""
        self._probe = probe
        self._with_state = with_state
        self._interval = interval
        self._global_norm = 0.0
        self._gradients: Mapping[str, float] | None = None

    @hookimpl
    def gradients_ready(self, event: GradientsReady) -> None:
        """Read the gradients before the optimizer step clears them."""
        due = event.step % self._interval == 0
        self._global_norm = event.gradient_norm
        self._gradients = self._probe.gradient_norms() if due else None

    @hookimpl
    def step_finished(self, event: StepFinished) -> dict[str, float] | None:
        """Return the norms, if they are due and an update was made."""
        gradients, self._gradients = self._gradients, None
        if gradients is None or event.skipped is not None:
            return None
        metrics = {
            "l2_norm/grad/global": self._global_norm,
            **_prefixed("l2_norm/grad/", gradients),
        }
        if self._with_state:
            metrics |= _prefixed("l2_norm/param/", self._probe.parameter_norms())
            metrics |= _prefixed("l2_norm/", self._probe.optimizer_norms())
        return metrics


def _prefixed(prefix: str, norms: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": norm for name, norm in norms.items()}
