"""What follows a step's backward passes: clip, ask, update."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from foundry_sdk.errors import NonFiniteError, RunError
from foundry_sdk.events import Fail, GradientsReady, Skip, Stop
from foundry_sdk.optim.guarded import GuardedOptimizer
from foundry_sdk.optim.norms import total_norm
from foundry_sdk.training.clipping import clip_factor, clip_gradients
from foundry_sdk.training.feed import Drawn

if TYPE_CHECKING:
    from pathlib import Path

    from foundry_sdk.training.assemble import Assembly


@attrs.frozen(kw_only=True)
class Reading:
    """What the host learns of a step: None where nobody waits for the device."""

    loss: float | None = None
    gradient_norm: float | None = None

    def finite(self) -> bool:
        """Return whether both numbers are known and finite."""
        return all(
            number is not None and math.isfinite(number)
            for number in (self.loss, self.gradient_norm)
        )


@attrs.frozen(kw_only=True)
class Updated:
    """What became of a step.

    Attributes:
        reading: its loss and gradient norm.
        lrs: of each group.
        skip: why the update was left out.
        stop: why the run is to end after this step.
    """

    reading: Reading
    lrs: tuple[float, ...]
    skip: Skip | None = None
    stop: Stop | None = None


class Updater:
    """Makes the updates of a run, or leaves them out where a callback says so.

    There are two ways. Where the optimizer can decide on the device (``GuardedOptimizer``) and
    callbacks refuse nothing but numbers that are not finite, the update is queued at once, and
    loss and norm come to the host while nothing waits for them. Otherwise they come first.

    Args:
        assembly: everything that a run is made of.
    """

    def __init__(self, assembly: "Assembly") -> None:
        self.a = assembly
        self._on_device = self._can_decide_on_device()
        self.last_checkpoint: Path | None = None
        if assembly.runtime.weights is not None:
            assembly.runtime.weights.wide_gradients = not self._on_device

    def __call__(
        self, drawn: Drawn, total: Tensor, *, needed: bool, meanwhile: Callable[[], None]
    ) -> Updated:
        """Update from the gradients that the parameters have.

        Args:
            drawn: what they were made from.
            total: sum of this rank's losses, 0-d, on the device.
            needed: whether loss and norm are wanted for themselves.
            meanwhile: what the host does before it waits for the device.

        Raises:
            NonFiniteError: a callback ends the run for its numbers.
        """
        needed = needed or self.a.bus.wants_gradients
        lrs = self._set_rates()
        if self._on_device and drawn.labels:
            return self._at_once(drawn, total, lrs, needed=needed, meanwhile=meanwhile)
        scaler = self.a.runtime.scaler
        scaler.unscale_(self.a.optimizer)
        norm = clip_gradients(self.a.parameters, self.a.spec.algorithms.gradient_clipping)
        meanwhile()
        reading = Reading()
        if needed or scaler.is_enabled():
            reading = self._read(self.a.runtime.sum_on_device(total.clone()), norm, drawn)
        skip, stop = self._ask(drawn, reading) if drawn.labels else (Skip(reason="no labels"), None)
        if skip is None:
            scaler.step(self.a.optimizer)
        scaler.update()
        self.a.optimizer.zero_grad(set_to_none=True)
        return Updated(reading=reading, lrs=lrs, skip=skip, stop=stop)

    def _can_decide_on_device(self) -> bool:
        clipping = self.a.spec.algorithms.gradient_clipping
        optimizer = self.a.optimizer
        return (
            isinstance(optimizer, GuardedOptimizer)
            and optimizer.can_guard()
            and (clipping is None or clipping.clipping_type == "norm")
            and not self.a.runtime.scaler.is_enabled()
            and not self.a.bus.wants_finite_gradients
        )

    def _at_once(
        self,
        drawn: Drawn,
        total: Tensor,
        lrs: tuple[float, ...],
        *,
        needed: bool,
        meanwhile: Callable[[], None],
    ) -> Updated:
        optimizer, runtime = self.a.optimizer, self.a.runtime
        assert isinstance(optimizer, GuardedOptimizer)  # noqa: S101 - a type guard
        norm = total_norm([p.grad for p in self.a.parameters if p.grad is not None])
        summed = runtime.sum_on_device(total.clone())
        factor = clip_factor(norm, self.a.spec.algorithms.gradient_clipping).to(torch.float32)
        if self.a.bus.wants_gradients:
            finite = torch.isfinite(summed) & torch.isfinite(norm)
            factor = torch.where(finite, factor, torch.nan)
        weights = runtime.weights
        optimizer.guarded_step(factor, {} if weights is None else weights.copies())
        self.a.optimizer.zero_grad(set_to_none=True)
        meanwhile()
        reading = self._read(summed, norm, drawn) if needed else Reading()
        skip, stop = self._ask(drawn, reading)
        if skip is not None and reading.finite():
            raise RunError(
                f"a callback that answers only to numbers that are not finite answered to loss "
                f"{reading.loss} and gradient norm {reading.gradient_norm}: {skip.reason}"
            )
        return Updated(reading=reading, lrs=lrs, skip=skip, stop=stop)

    def _set_rates(self) -> tuple[float, ...]:
        multiplier = self.a.schedule(self.a.state.progress())
        for group in self.a.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
        return tuple(float(group["lr"]) for group in self.a.optimizer.param_groups)

    def _read(self, summed: Tensor, norm: Tensor, drawn: Drawn) -> Reading:
        """Bring loss and gradient norm to the host: the only place where it waits."""
        loss, gradient_norm = torch.stack([summed.float(), norm.float()]).tolist()
        return Reading(loss=loss / max(drawn.labels, 1), gradient_norm=gradient_norm)

    def _ask(self, drawn: Drawn, reading: Reading) -> tuple[Skip | None, Stop | None]:
        """Ask the callbacks whether the update may be made; numbers are equal on all ranks."""
        if reading.loss is None or reading.gradient_norm is None:
            return None, None
        scaled = self.a.runtime.scaler.is_enabled()
        if scaled and math.isfinite(reading.loss) and not math.isfinite(reading.gradient_norm):
            overflow = "a gradient overflowed in float16; the loss scale is lowered"
            return Skip(reason=overflow), None
        if not self.a.bus.wants_gradients:
            return None, None
        ids = drawn.batch.sample_ids
        answers = self.a.bus.gradients_ready(
            GradientsReady(
                step=self.a.state.step + 1,
                loss=reading.loss,
                gradient_norm=reading.gradient_norm,
                sample_ids=None if ids is None else tuple(ids.tolist()),
                last_checkpoint=self.last_checkpoint,
            )
        )
        for answer in answers:
            if isinstance(answer, Fail):
                raise NonFiniteError(answer.reason)
        skip = next((answer for answer in answers if isinstance(answer, Skip)), None)
        stop = next((answer for answer in answers if isinstance(answer, Stop)), None)
        return skip, stop
