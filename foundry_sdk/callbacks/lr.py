"""``lr_monitor``: the learning rate of each parameter group."""

import attrs

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.events import RunStarted, StepFinished
from foundry_sdk.hookspecs import hookimpl


@attrs.frozen(kw_only=True)
class LRMonitorSpec(CallbackSpec):
    """Logs ``lr-OPTIMIZER/groupN``, the rate that the step's update was made with."""

    kind = "lr_monitor"

    def build(self, run: RunStarted) -> "LRMonitor":  # noqa: ARG002 - the family's signature
        """Return the callback."""
        return LRMonitor()


class LRMonitor:
    """Passes the rates on under the reference's keys."""

    key = LRMonitorSpec.kind

    @hookimpl
    def step_finished(self, event: StepFinished) -> dict[str, float]:
        """Return one number for each parameter group."""
        return {f"lr-{event.optimizer}/group{index}": lr for index, lr in enumerate(event.lrs)}
