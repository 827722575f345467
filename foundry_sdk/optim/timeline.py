"""A run's length and progress in one unit, so that schedules are plain functions of a number."""

import logging
from collections.abc import Callable
from typing import Final

import attrs

from foundry_sdk.errors import SpecError
from foundry_sdk.optim.contract import Progress, RunLength
from foundry_sdk.units import Duration, TimeUnit

_log = logging.getLogger(__name__)

WHOLE_RUN: Final = Duration(1.0, TimeUnit.DURATION)

_READ: Final[dict[TimeUnit, Callable[[Progress], float]]] = {
    TimeUnit.BATCH: lambda progress: progress.step,
    TimeUnit.SAMPLE: lambda progress: progress.samples,
    TimeUnit.TOKEN: lambda progress: progress.tokens,
    TimeUnit.SECOND: lambda progress: progress.seconds,
}


@attrs.frozen
class Span:
    """A length of training in a unit that progress is counted in: ba, sp, tok or sec."""

    value: float
    unit: TimeUnit

    def __str__(self) -> str:
        """Return it as a duration is written."""
        return str(Duration(self.value, self.unit))


def read(progress: Progress, unit: TimeUnit) -> float:
    """Return how far the run is, in ``unit`` (any but ``ep`` and ``dur``)."""
    return _READ[unit](progress)


def resolve(duration: Duration, length: RunLength, name: str) -> Span:
    """Return ``duration`` in the unit that progress is counted in.

    ``ep`` becomes batches. ``dur`` becomes the unit of ``max_duration`` (batches for epochs), whole
    numbers rounded down.

    Args:
        duration: as in the spec.
        length: of the run.
        name: of the field, for messages.

    Raises:
        SpecError: epochs or shares of a run whose number of steps is not known.
    """
    if duration.unit is TimeUnit.DURATION:
        whole = _whole_run(length, name, duration)
        value = whole.value * duration.value
        return Span(value if whole.unit is TimeUnit.SECOND else int(value), whole.unit)
    if duration.unit is TimeUnit.EPOCH:
        if length.steps_per_epoch is None:
            raise SpecError(
                f"scheduler.{name}: {duration} cannot be counted, for the data has no end; "
                "use 'ba', 'sp', 'tok' or 'dur'"
            )
        return Span(duration.value * length.steps_per_epoch, TimeUnit.BATCH)
    return Span(duration.value, duration.unit)


def _whole_run(length: RunLength, name: str, duration: Duration) -> Span:
    if length.max_duration.unit is not TimeUnit.EPOCH:
        return Span(length.max_duration.value, length.max_duration.unit)
    if length.steps is not None:
        return Span(length.steps, TimeUnit.BATCH)
    if length.steps_per_epoch is not None:
        return Span(length.max_duration.value * length.steps_per_epoch, TimeUnit.BATCH)
    raise SpecError(
        f"scheduler.{name}: {duration} is a share of max_duration {length.max_duration}, whose "
        "number of steps is not known; give it in 'ba'"
    )


def resolve_end(t_max: Duration, length: RunLength) -> Span:
    """Return when the schedule ends.

    Raises:
        SpecError: that is before the run does.
    """
    end = resolve(t_max, length, "t_max")
    run = resolve(WHOLE_RUN, length, "t_max")
    if end.unit is run.unit and end.value < run.value:
        raise SpecError(
            f"scheduler.t_max: {t_max} is shorter than max_duration {length.max_duration}"
            f"{'' if str(run) == str(length.max_duration) else f' ({run})'}; "
            "leave it out or make it at least that"
        )
    return end


def resolve_part(
    duration: Duration, length: RunLength, name: str, *, end: Span, end_name: str = "t_max"
) -> float:
    """Return a part of the schedule in the unit of its ``end``.

    Raises:
        SpecError: its unit is another, or it is longer than the schedule.
    """
    part = resolve(duration, length, name)
    if part.unit is not end.unit:
        raise SpecError(
            f"scheduler.{name}: {duration} is counted in {part.unit.value!r} but {end_name} in "
            f"{end.unit.value!r}, and the two cannot be compared; "
            f"{_suggest(part, end, length)}"
        )
    if part.value > end.value:
        raise SpecError(
            f"scheduler.{name}: {duration} is longer than {end_name} ({end}); shorten it"
        )
    return part.value


def warn_of_no_warmup(warmup: float) -> None:
    """Log a warning where training starts at full learning rate."""
    if warmup == 0:
        _log.warning("scheduler: t_warmup is 0, so training starts at the peak learning rate")


def note_scale_warmup(*, scale_warmup: bool) -> None:
    """Log that ``scale_warmup`` has nothing to scale with."""
    if scale_warmup:
        _log.info(
            "scheduler: scale_warmup has no effect, as no run here scales its schedule "
            "(there is no scale_schedule_ratio)"
        )


def _suggest(part: Span, end: Span, length: RunLength) -> str:
    per_step = {
        TimeUnit.BATCH: 1,
        TimeUnit.SAMPLE: length.samples_per_step,
        TimeUnit.TOKEN: length.tokens_per_step,
    }
    share = f"use {end.unit.value!r} or a share of the run ('dur')"
    if part.unit not in per_step or end.unit not in per_step:
        return share
    same = round(part.value / per_step[part.unit] * per_step[end.unit])
    about = "at most " if end.unit is TimeUnit.TOKEN else ""
    return f"{share}: {part} are {about}{same}{end.unit.value} with this batch"
