"""Learning rate schedules: multipliers on the peak, as functions of a run's progress.

The step that has ``Progress`` before it is updated with the schedule's value at that progress:
step b, counted from 0, uses multiplier(b). Warmup is linear from 0.
"""

import math
from collections.abc import Callable
from typing import Any, Final, Literal

import attrs

from foundry_sdk.errors import SpecError
from foundry_sdk.optim.contract import Progress, RunLength, Schedule, SchedulerSpec
from foundry_sdk.optim.timeline import (
    WHOLE_RUN,
    Span,
    note_scale_warmup,
    read,
    resolve_end,
    resolve_part,
    warn_of_no_warmup,
)
from foundry_sdk.units import Duration, TimeUnit


def _duration(text: str | int | Duration) -> Duration:
    return Duration.parse(text)


def _end(text: str | int | Duration | None) -> Duration:
    return WHOLE_RUN if text is None else Duration.parse(text)


def _multiplier(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name} must be a finite number >= 0, got {value!r}")


def _warmup(length: RunLength, duration: Duration, end: Span) -> float:
    warmup = resolve_part(duration, length, "t_warmup", end=end)
    warn_of_no_warmup(warmup)
    return warmup


def _ramp(end: Span, warmup: float, target: float, after: Callable[[float], float]) -> Schedule:
    """Return a schedule: linear from 0 to ``target`` over ``warmup``, then ``after(t)``."""

    def schedule(progress: Progress) -> float:
        t = read(progress, end.unit)
        return target * t / warmup if t < warmup else after(t)

    return schedule


def _share(t: float, start: float, end: float) -> float:
    """Return how far ``t`` is from ``start`` to ``end``, at most 1; 0 for an empty stretch."""
    return min(1.0, (t - start) / (end - start)) if end > start else 0.0


@attrs.frozen(kw_only=True)
class ConstantWithWarmupSpec(SchedulerSpec):
    """Linear warmup to ``alpha``, then ``alpha``.

    Attributes:
        t_warmup: how long the warmup is.
        alpha: the multiplier after it.
        t_max: where the schedule ends; None = with the run.
        scale_warmup: read for LLM Foundry's sake, without effect.
    """

    kind = "constant_with_warmup"
    t_warmup: Duration = attrs.field(converter=_duration)
    alpha: float = attrs.field(default=1.0, validator=_multiplier)
    t_max: Duration | None = attrs.field(default=None, converter=_end)
    scale_warmup: bool = False

    def build(self, length: RunLength) -> Schedule:
        """Return the schedule; see the family for errors."""
        note_scale_warmup(scale_warmup=self.scale_warmup)
        end = resolve_end(self.t_max or WHOLE_RUN, length)
        return _ramp(end, _warmup(length, self.t_warmup, end), self.alpha, lambda _: self.alpha)


@attrs.frozen(kw_only=True)
class LinearDecayWithWarmupSpec(SchedulerSpec):
    """Linear warmup to ``alpha_i``, then linear to ``alpha_f`` at ``t_max``.

    Attributes:
        t_warmup: how long the warmup is.
        alpha_i: the multiplier after it.
        alpha_f: the multiplier at the end.
        t_max: where the schedule ends; None = with the run.
        scale_warmup: read for LLM Foundry's sake, without effect.
    """

    kind = "linear_decay_with_warmup"
    t_warmup: Duration = attrs.field(converter=_duration)
    alpha_i: float = attrs.field(default=1.0, validator=_multiplier)
    alpha_f: float = attrs.field(default=0.0, validator=_multiplier)
    t_max: Duration | None = attrs.field(default=None, converter=_end)
    scale_warmup: bool = False

    def build(self, length: RunLength) -> Schedule:
        """Return the schedule; see the family for errors."""
        note_scale_warmup(scale_warmup=self.scale_warmup)
        end = resolve_end(self.t_max or WHOLE_RUN, length)
        warmup = _warmup(length, self.t_warmup, end)

        def decay(t: float) -> float:
            return self.alpha_i + _share(t, warmup, end.value) * (self.alpha_f - self.alpha_i)

        return _ramp(end, warmup, self.alpha_i, decay)


@attrs.frozen(kw_only=True)
class CosineWithWarmupSpec(SchedulerSpec):
    """Linear warmup to 1, then half a cosine to ``alpha_f`` at ``t_max``.

    Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts.

    Attributes:
        t_warmup: how long the warmup is.
        t_max: where the schedule ends; None = with the run.
        alpha_f: the multiplier at the end.
        scale_warmup: read for LLM Foundry's sake, without effect.
    """

    kind = "cosine_with_warmup"
    t_warmup: Duration = attrs.field(converter=_duration)
    t_max: Duration | None = attrs.field(default=None, converter=_end)
    alpha_f: float = attrs.field(default=0.0, validator=_multiplier)
    scale_warmup: bool = False

    def build(self, length: RunLength) -> Schedule:
        """Return the schedule; see the family for errors."""
        note_scale_warmup(scale_warmup=self.scale_warmup)
        end = resolve_end(self.t_max or WHOLE_RUN, length)
        warmup = _warmup(length, self.t_warmup, end)

        def decay(t: float) -> float:
            cosine = (1 + math.cos(math.pi * _share(t, warmup, end.value))) / 2
            return self.alpha_f + (1 - self.alpha_f) * cosine

        return _ramp(end, warmup, 1.0, decay)


@attrs.frozen(kw_only=True)
class InverseSqrtWithWarmupSpec(SchedulerSpec):
    """Linear warmup to 1, decay with 1/sqrt(t), and a linear cooldown at the end.

    After the warmup the multiplier is a_d + (1 - a_d) / sqrt(1 + (t - t_warmup) / t_scale), with
    a_d = ``alpha_f_decay`` (Vaswani et al. 2017, "Attention Is All You Need", section 5.3, is the
    case a_d = 0, t_scale = t_warmup). The cooldown goes from its value there to
    ``alpha_f_cooldown``.

    Attributes:
        t_warmup: how long the warmup is.
        t_scale: how long the decay takes to fall to 1/sqrt(2) of the way.
        t_cooldown: how long the cooldown is; it ends at ``t_max``, but starts after the warmup.
        t_max: where the schedule ends; None = with the run.
        alpha_f_decay: what the decay approaches.
        alpha_f_cooldown: the multiplier at the end.
    """

    kind = "inv_sqrt_with_warmup"
    t_warmup: Duration = attrs.field(converter=_duration)
    t_scale: Duration = attrs.field(converter=_duration)
    t_cooldown: Duration = attrs.field(converter=_duration)
    t_max: Duration | None = attrs.field(default=None, converter=_end)
    alpha_f_decay: float = attrs.field(default=0.0, validator=_multiplier)
    alpha_f_cooldown: float = attrs.field(default=0.0, validator=_multiplier)

    def __attrs_post_init__(self) -> None:
        """Check what the fields say together.

        Raises:
            ValueError: the cooldown would have to rise, a part is a share of the run, or
                ``t_scale`` is 0.
        """
        if self.alpha_f_decay < self.alpha_f_cooldown:
            raise ValueError(
                f"alpha_f_decay ({self.alpha_f_decay}) must not be less than alpha_f_cooldown "
                f"({self.alpha_f_cooldown}), for the cooldown goes down"
            )
        for name in ("t_warmup", "t_scale", "t_cooldown"):
            if getattr(self, name).unit is TimeUnit.DURATION:
                raise ValueError(
                    f"{name} must not be a share of the run ({getattr(self, name)}): this "
                    "schedule is the same for any length; use 'ba', 'sp' or 'tok'"
                )
        if self.t_scale.value == 0:
            raise ValueError("t_scale must be longer than 0")

    def build(self, length: RunLength) -> Schedule:
        """Return the schedule; see the family for errors."""
        end = resolve_end(self.t_max or WHOLE_RUN, length)
        warmup = _warmup(length, self.t_warmup, end)
        cooldown = resolve_part(self.t_cooldown, length, "t_cooldown", end=end)
        # t_scale may be longer than the run; only its unit is checked.
        scale = resolve_part(self.t_scale, length, "t_scale", end=attrs.evolve(end, value=math.inf))
        turn = max(warmup, end.value - cooldown)

        def decay(t: float) -> float:
            root = 1 / math.sqrt((t - warmup + scale) / scale)
            return self.alpha_f_decay + root * (1 - self.alpha_f_decay)

        def after(t: float) -> float:
            if t <= turn:
                return decay(t)
            share = min(1.0, (t - turn) / cooldown) if cooldown else 1.0
            return decay(turn) + share * (self.alpha_f_cooldown - decay(turn))

        return _ramp(end, warmup, 1.0, after)


DecayShape = Literal["linear", "cosine", "1-sqrt"]

_SHAPES: Final[dict[DecayShape, Callable[[float], float]]] = {
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "1-sqrt": lambda share: 1 - math.sqrt(share),
}


@attrs.frozen(kw_only=True)
class WarmupStableDecaySpec(SchedulerSpec):
    """Linear warmup to 1, then 1, then a decay to ``alpha_f`` over the last ``t_decay``.

    Hu et al. 2024, "MiniCPM", section 4.2; the shape 1 - sqrt is from Hägele et al. 2024, "Scaling
    Laws and Compute-Optimal Training Beyond Fixed Training Durations", section 3. A run may be
    made longer from any checkpoint before the decay, with the same values up to there.

    Attributes:
        t_warmup: how long the warmup is.
        t_decay: how long the decay is; it ends at ``t_max``.
        t_max: where the schedule ends; None = with the run.
        alpha_f: the multiplier at the end.
        decay_shape: of the way from 1 to ``alpha_f``.
    """

    kind = "wsd"
    t_warmup: Duration = attrs.field(converter=_duration)
    t_decay: Duration = attrs.field(converter=_duration)
    t_max: Duration | None = attrs.field(default=None, converter=_end)
    alpha_f: float = attrs.field(default=0.0, validator=_multiplier)
    decay_shape: DecayShape = attrs.field(
        default="linear", validator=attrs.validators.in_(tuple(_SHAPES))
    )

    def build(self, length: RunLength) -> Schedule:
        """Return the schedule; see the family for errors."""
        end = resolve_end(self.t_max or WHOLE_RUN, length)
        warmup = _warmup(length, self.t_warmup, end)
        decay = resolve_part(self.t_decay, length, "t_decay", end=end)
        start = end.value - decay
        if start < warmup:
            raise SpecError(
                f"scheduler: t_warmup {self.t_warmup} and t_decay {self.t_decay} together are "
                f"longer than t_max ({end}); shorten one"
            )
        shape = _SHAPES[self.decay_shape]

        def after(t: float) -> float:
            return self.alpha_f + (1 - self.alpha_f) * shape(max(0.0, _share(t, start, end.value)))

        return _ramp(end, warmup, 1.0, after)
