"""Schedules against values worked out by hand."""

import logging
import math

import pytest

from foundry_sdk.errors import SpecError
from foundry_sdk.optim.contract import Progress, RunLength
from foundry_sdk.optim.schedules import (
    ConstantWithWarmupSpec,
    CosineWithWarmupSpec,
    InverseSqrtWithWarmupSpec,
    LinearDecayWithWarmupSpec,
    WarmupStableDecaySpec,
)
from foundry_sdk.units import Duration

SAMPLES, TOKENS = 4, 40  # of a step


def length(max_duration, *, steps=None, steps_per_epoch=None):
    return RunLength(
        max_duration=Duration.parse(max_duration),
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        samples_per_step=SAMPLES,
        tokens_per_step=TOKENS,
    )


def at(step):
    return Progress(
        step=step, epoch=0, samples=step * SAMPLES, tokens=step * TOKENS, seconds=step * 2.0
    )


def values(spec, run, steps):
    schedule = spec.build(run)
    return [schedule(at(step)) for step in steps]


def test_linear_uses_the_multiplier_of_its_own_step():
    spec = LinearDecayWithWarmupSpec(t_warmup="2ba")
    got = values(spec, length("6ba"), range(7))
    assert got == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25, 0])


def test_linear_goes_from_alpha_i_to_alpha_f():
    spec = LinearDecayWithWarmupSpec(t_warmup="4ba", alpha_i=0.8, alpha_f=0.2)
    assert values(spec, length("10ba"), [0, 1, 4, 7, 10, 12]) == pytest.approx(
        [0, 0.2, 0.8, 0.5, 0.2, 0.2]
    )


def test_constant_stays_at_alpha():
    spec = ConstantWithWarmupSpec(t_warmup="4ba", alpha=0.5)
    assert values(spec, length("8ba"), [0, 1, 4, 5, 8]) == [0, 0.125, 0.5, 0.5, 0.5]


def test_cosine():
    spec = CosineWithWarmupSpec(t_warmup="10ba", alpha_f=0.1)
    root = math.sqrt(0.5)
    assert values(spec, length("50ba"), [5, 10, 20, 30, 40, 50, 60]) == pytest.approx(
        [0.5, 1, 0.1 + 0.9 * (1 + root) / 2, 0.55, 0.1 + 0.9 * (1 - root) / 2, 0.1, 0.1]
    )


def test_cosine_whose_warmup_fills_the_run_stays_at_its_peak():
    spec = CosineWithWarmupSpec(t_warmup="4ba")
    assert values(spec, length("4ba"), [2, 4, 5]) == [0.5, 1, 1]


def test_inverse_sqrt_with_cooldown():
    spec = InverseSqrtWithWarmupSpec(
        t_warmup="4ba", t_scale="4ba", t_cooldown="8ba", alpha_f_decay=0.2, alpha_f_cooldown=0.1
    )
    # 1/sqrt of 1, 2, 4 and 7 at steps 4, 8, 16 and 28, where the cooldown starts
    turn = 0.2 + 0.8 / math.sqrt(7)
    assert values(spec, length("36ba"), [0, 2, 4, 8, 16, 28, 32, 36]) == pytest.approx(
        [0, 0.5, 1, 0.2 + 0.8 / math.sqrt(2), 0.6, turn, (turn + 0.1) / 2, 0.1]
    )


def test_inverse_sqrt_without_cooldown_ends_on_its_curve():
    spec = InverseSqrtWithWarmupSpec(t_warmup="4ba", t_scale="4ba", t_cooldown="0ba")
    assert values(spec, length("16ba"), [4, 16]) == pytest.approx([1, 0.5])


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [
        ("linear", 0.75, 0.5),
        ("cosine", (1 + math.sqrt(0.5)) / 2, 0.5),
        ("1-sqrt", 0.5, 1 - math.sqrt(0.5)),
    ],
)
def test_warmup_stable_decay(shape, quarter, half):
    spec = WarmupStableDecaySpec(t_warmup="10ba", t_decay="20ba", alpha_f=0.5, decay_shape=shape)
    assert values(spec, length("100ba"), [0, 5, 10, 50, 80, 85, 90, 100, 110]) == pytest.approx(
        [0, 0.5, 1, 1, 1, 0.5 + 0.5 * quarter, 0.5 + 0.5 * half, 0.5, 0.5]
    )


def test_a_longer_run_has_the_same_values_before_its_decay():
    spec = WarmupStableDecaySpec(t_warmup="10ba", t_decay="20ba")
    short, long = (values(spec, length(text), range(81)) for text in ("100ba", "300ba"))
    assert short == long


@pytest.mark.parametrize(
    ("warmup", "run"),
    [
        ("2ba", length("6ba")),
        ("8sp", length("24sp")),
        ("80tok", length("240tok")),
        ("4sec", length("12sec")),
        ("0.34dur", length("6ba")),  # int(2.04)
        ("1ep", length("3ep", steps=6, steps_per_epoch=2)),
        ("2ba", length("3ep", steps=6, steps_per_epoch=2)),
        ("0.34dur", length("3ep", steps_per_epoch=2)),
        ("0.34dur", length("3ep", steps=6)),
        ("1ep", length("6ba", steps_per_epoch=2)),
    ],
)
def test_every_unit_gives_the_same_schedule(warmup, run):
    got = values(LinearDecayWithWarmupSpec(t_warmup=warmup), run, range(7))
    assert got == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25, 0])


def test_shares_of_seconds_are_not_rounded():
    schedule = ConstantWithWarmupSpec(t_warmup="0.25dur").build(length("10sec"))
    assert schedule(at(1)) == pytest.approx(2 / 2.5)


def test_t_max_may_be_later_than_the_run_and_none_is_its_end():
    longer = LinearDecayWithWarmupSpec(t_warmup="0ba", t_max="20ba")
    assert values(longer, length("10ba"), [10]) == pytest.approx([0.5])
    for t_max in (None, "1dur", "10ba"):
        spec = LinearDecayWithWarmupSpec(t_warmup="0ba", t_max=t_max)
        assert values(spec, length("10ba"), [0, 5, 10]) == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize(
    ("spec", "run", "message"),
    [
        (CosineWithWarmupSpec(t_warmup="4sp"), length("9ba"), "1ba with this batch"),
        (CosineWithWarmupSpec(t_warmup="3ba"), length("900tok"), "at most 120tok"),
        (CosineWithWarmupSpec(t_warmup="3sec"), length("9ba"), "cannot be compared; use 'ba'"),
        (CosineWithWarmupSpec(t_warmup="10ba"), length("9ba"), r"longer than t_max \(9ba\)"),
        (CosineWithWarmupSpec(t_warmup="1ep"), length("9ba"), "the data has no end"),
        (CosineWithWarmupSpec(t_warmup="1ba"), length("1ep"), "steps is not known"),
        (
            CosineWithWarmupSpec(t_warmup="1ba", t_max="5ba"),
            length("3ep", steps_per_epoch=2),
            r"t_max: 5ba is shorter than max_duration 3ep \(6ba\)",
        ),
        (
            WarmupStableDecaySpec(t_warmup="6ba", t_decay="5ba"),
            length("10ba"),
            "together are longer",
        ),
        (WarmupStableDecaySpec(t_warmup="6ba", t_decay="5sp"), length("10ba"), "t_decay"),
        (
            InverseSqrtWithWarmupSpec(t_warmup="1ba", t_scale="4sp", t_cooldown="0ba"),
            length("10ba"),
            "scheduler.t_scale",
        ),
    ],
)
def test_what_does_not_fit_the_run_is_refused(spec, run, message):
    with pytest.raises(SpecError, match=message):
        spec.build(run)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (ConstantWithWarmupSpec, {"alpha": -1.0}, "alpha must be"),
        (ConstantWithWarmupSpec, {"t_warmup": "3 bananas"}, "unknown unit"),
        (WarmupStableDecaySpec, {"t_decay": "1ba", "decay_shape": "square"}, "decay_shape"),
        (
            InverseSqrtWithWarmupSpec,
            {"t_scale": "1ba", "t_cooldown": "1ba", "alpha_f_cooldown": 0.5},
            "the cooldown goes down",
        ),
        (InverseSqrtWithWarmupSpec, {"t_scale": "0.1dur", "t_cooldown": "1ba"}, "share of the run"),
        (InverseSqrtWithWarmupSpec, {"t_scale": "0ba", "t_cooldown": "1ba"}, "longer than 0"),
    ],
)
def test_bad_fields_are_refused(cls, settings, message):
    with pytest.raises(ValueError, match=message):
        cls(**{"t_warmup": "1ba", **settings})


def test_no_warmup_is_warned_of_and_scale_warmup_noted(caplog):
    with caplog.at_level(logging.INFO):
        CosineWithWarmupSpec(t_warmup="1ba").build(length("9ba"))
        assert not caplog.records
        CosineWithWarmupSpec(t_warmup="0ba", scale_warmup=True).build(length("9ba"))
    assert "t_warmup is 0" in caplog.text
    assert "scale_warmup has no effect" in caplog.text
