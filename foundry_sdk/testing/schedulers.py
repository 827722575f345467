"""Checks of learning rate schedules: pure functions, finite from the first step to the end."""

import math

from foundry_sdk.optim.contract import Progress, RunLength, SchedulerSpec
from foundry_sdk.testing.failure import expect
from foundry_sdk.units import Duration

_STEPS = 100
_STEPS_PER_EPOCH = 50
_SEQUENCES = 4
_TOKENS = 64


def check_scheduler(spec: SchedulerSpec) -> None:
    """Check the schedule over a run of 100 steps, two epochs, and what lies at its ends.

    Durations in the spec must fit such a run of 4 sequences of 16 tokens a step.

    Raises:
        ConformanceError: the multiplier is no finite number >= 0, is not defined at the start or
            the end, or depends on when it is asked for.
    """
    length = RunLength(
        max_duration=Duration.parse(f"{_STEPS}ba"),
        steps=_STEPS,
        steps_per_epoch=_STEPS_PER_EPOCH,
        samples_per_step=_SEQUENCES,
        tokens_per_step=_TOKENS,
    )
    schedule = spec.build(length)
    moments = [_progress(step) for step in range(_STEPS + 2)]
    multipliers = []
    for progress in moments:
        value: object = schedule(progress)
        expect(
            isinstance(value, int | float) and math.isfinite(value) and value >= 0,
            spec,
            f"the multiplier before step {progress.step + 1} of {_STEPS} is {value!r}; return a "
            "finite number >= 0 for every step, the first, the last and one after it included",
        )
        multipliers.append(value)
    backwards = [schedule(progress) for progress in reversed(moments)][::-1]
    again = [spec.build(length)(progress) for progress in moments]
    expect(
        multipliers == backwards == again,
        spec,
        "the multiplier depends on when or how often it is asked for; compute it from the "
        "progress alone, as resumed runs ask anew",
    )
    expect(
        any(multipliers[:_STEPS]),
        spec,
        "the multiplier is 0 at every step, so nothing would be learned",
    )


def _progress(step: int) -> Progress:
    return Progress(
        step=step,
        epoch=step // _STEPS_PER_EPOCH,
        samples=step * _SEQUENCES,
        tokens=step * _TOKENS,
        seconds=step * 0.5,
    )
