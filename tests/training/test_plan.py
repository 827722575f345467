"""The arithmetic of steps and intervals, against numbers by hand."""

import pytest

from foundry_sdk.errors import SpecError
from foundry_sdk.training.plan import BatchPlan, Clock, due, steps_of
from foundry_sdk.units import Duration


def clock(step: int = 0, epoch: int = 0, samples: int = 0, tokens: int = 0) -> Clock:
    return Clock(step=step, epoch=epoch, samples=samples, tokens=tokens, seconds=0.0)


def test_the_last_microbatch_may_be_smaller() -> None:
    plan = BatchPlan.of(global_batch=20, world_size=2, microbatch=4)
    assert (plan.device_batch, plan.microbatch, plan.microbatches) == (10, 4, 3)


def test_a_microbatch_above_the_device_batch_is_cut_to_it() -> None:
    assert BatchPlan.of(global_batch=8, world_size=4, microbatch=16).microbatch == 2


@pytest.mark.parametrize(("world_size", "near"), [(3, "255 or 258"), (300, "300")])
def test_an_indivisible_global_batch_names_the_nearest_that_work(
    world_size: int, near: str
) -> None:
    with pytest.raises(SpecError, match=f"256 is not divisible.*{world_size}; .*: {near}$"):
        BatchPlan.of(global_batch=256, world_size=world_size, microbatch=1)


@pytest.mark.parametrize(
    ("text", "steps"), [("7ba", 7), ("2ep", 10), ("33sp", 5), ("2e3tok", 2), ("2049tok", 3)]
)
def test_durations_in_steps(text: str, steps: int) -> None:
    duration = Duration.parse(text)
    assert steps_of(duration, steps_per_epoch=5, samples=8, tokens=1024) == steps


def test_epochs_of_endless_data_are_refused() -> None:
    with pytest.raises(SpecError, match="no known end"):
        steps_of(Duration.parse("1ep"), steps_per_epoch=None, samples=1, tokens=1)


@pytest.mark.parametrize(
    ("interval", "before", "now", "expected"),
    [
        ("10ba", clock(step=9), clock(step=10), True),
        ("10ba", clock(step=10), clock(step=11), False),
        # A step that jumps over a multiple is not missed; two multiples count once.
        ("1000tok", clock(tokens=900), clock(tokens=1150), True),
        ("1000tok", clock(tokens=1000), clock(tokens=1999), False),
        ("100sp", clock(samples=90), clock(samples=310), True),
        ("1ep", clock(step=5, epoch=0), clock(step=6, epoch=1), True),
        ("0ba", clock(step=1), clock(step=2), False),
        # A quarter of 10 steps, rounded up: every 3.
        ("0.25dur", clock(step=2), clock(step=3), True),
        ("0.25dur", clock(step=3), clock(step=4), False),
    ],
)
def test_an_interval_is_due_when_a_multiple_is_crossed(
    interval: str, before: Clock, now: Clock, expected: bool
) -> None:
    assert due(Duration.parse(interval), before, now, total_steps=10) is expected
