"""``scheduled_gc``: collect garbage at the same steps on every rank."""

import gc

import attrs
from attrs import validators

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.events import (
    EvaluationFinished,
    EvaluationStarted,
    RunFinished,
    RunStarted,
    StepStarted,
)
from foundry_sdk.hookspecs import hookimpl


@attrs.frozen(kw_only=True)
class ScheduledGCSpec(CallbackSpec):
    """Turns Python's own collector off and collects every ``batch_interval`` steps.

    A collection takes tens of milliseconds; ranks that make theirs at different steps wait for
    one another every time.

    Attributes:
        batch_interval: steps between full collections, which also empty CUDA's cache.
        gen_1_batch_interval: steps between collections of the younger objects; None for none.
        eval_keep_disabled: leave the collector off in evaluation too.
    """

    kind = "scheduled_gc"
    batch_interval: int = attrs.field(validator=validators.ge(1))
    gen_1_batch_interval: int | None = attrs.field(
        default=None, validator=validators.optional(validators.ge(1))
    )
    eval_keep_disabled: bool = False

    def build(self, run: RunStarted) -> "ScheduledGC":
        """Return the callback."""
        return ScheduledGC(self, cuda=run.device == "cuda")


class ScheduledGC:
    """Leaves the collector as it found it when the run is over."""

    key = ScheduledGCSpec.kind

    def __init__(self, spec: ScheduledGCSpec, *, cuda: bool) -> None:
        """Take the intervals from ``spec``."""
        self._spec = spec
        self._cuda = cuda
        self._was_enabled = True

    @hookimpl
    def run_started(self, event: RunStarted) -> None:  # noqa: ARG002 - the moment is all
        """Collect, and turn the collector off."""
        self._was_enabled = gc.isenabled()
        gc.disable()
        self._collect()

    @hookimpl
    def step_started(self, event: StepStarted) -> None:
        """Collect where due. Step 1 comes right after the collection at the start."""
        made = event.step - 1
        if made == 0:
            return
        younger = self._spec.gen_1_batch_interval
        if made % self._spec.batch_interval == 0:
            self._collect()
        elif younger is not None and made % younger == 0:
            gc.collect(1)

    @hookimpl
    def evaluation_started(self, event: EvaluationStarted) -> None:  # noqa: ARG002
        """Give the collector back for the time of the evaluation."""
        if not self._spec.eval_keep_disabled:
            gc.enable()

    @hookimpl
    def evaluation_finished(self, event: EvaluationFinished) -> None:  # noqa: ARG002
        """Turn it off again."""
        if not self._spec.eval_keep_disabled:
            gc.disable()
            self._collect()

    @hookimpl
    def run_finished(self, event: RunFinished) -> None:  # noqa: ARG002
        """Leave the collector as it was."""
        if self._was_enabled:
            gc.enable()

    def _collect(self) -> None:
        gc.collect()
        if self._cuda:
            import torch

            torch.cuda.empty_cache()
