"""nan_monitor and loss_spike_guard: when they answer, and what."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundry_sdk.callbacks.guards import LossSpikeGuard, LossSpikeGuardSpec, NaNMonitorSpec
from foundry_sdk.errors import SpecError
from foundry_sdk.events import Fail, GradientsReady, RunStarted, Skip, StepFinished, Stop

MakeRun = Callable[..., RunStarted]
MakeStep = Callable[..., StepFinished]
MakeGradients = Callable[..., GradientsReady]


@pytest.mark.parametrize("field", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_fails_the_run(
    make_run: MakeRun, make_gradients: MakeGradients, field: str, value: float
) -> None:
    monitor = NaNMonitorSpec().build(make_run())
    assert monitor.gradients_ready(make_gradients(1)) is None
    changes: dict[str, Any] = {
        field: value,
        "sample_ids": (41, 7),
        "last_checkpoint": Path("runs/a/step-5"),
    }
    answer = monitor.gradients_ready(make_gradients(6, **changes))
    assert isinstance(answer, Fail)
    for part in ("step 6", str(value), "41, 7", "runs/a/step-5", "not made"):
        assert part in answer.reason


def test_long_lists_of_samples_are_cut(make_run: MakeRun, make_gradients: MakeGradients) -> None:
    monitor = NaNMonitorSpec().build(make_run())
    answer = monitor.gradients_ready(
        make_gradients(1, loss=math.nan, sample_ids=tuple(range(100, 120)))
    )
    assert answer is not None
    assert "115 and 4 more. Last checkpoint: none" in answer.reason


def test_skips_are_borne_up_to_the_limit_in_a_row(
    make_run: MakeRun, make_gradients: MakeGradients
) -> None:
    spec = NaNMonitorSpec(policy="skip", max_consecutive_skips=2)
    monitor = spec.build(make_run())
    losses = [math.nan, math.nan, 1.0, math.nan, math.nan]
    answers = [monitor.gradients_ready(make_gradients(1, loss=loss)) for loss in losses]
    assert [type(answer) for answer in answers] == [Skip, Skip, type(None), Skip, Skip]
    resumed = spec.build(make_run())
    resumed.load_state_dict(monitor.state_dict())
    answer = resumed.gradients_ready(make_gradients(1, loss=math.nan))
    assert isinstance(answer, Fail)
    assert "after 2 skipped steps in a row" in answer.reason


def fill(guard: LossSpikeGuard, make: MakeGradients, losses: list[float]) -> None:
    for step, loss in enumerate(losses, start=1):
        assert guard.gradients_ready(make(step, loss=loss)) is None


def test_the_limit_is_sigma_standard_deviations_above_the_mean(
    make_run: MakeRun, make_gradients: MakeGradients
) -> None:
    losses = np.random.default_rng(0).normal(3.0, 0.1, size=50).tolist()
    limit = statistics.fmean(losses) + 4 * statistics.pstdev(losses)
    spec = LossSpikeGuardSpec(window=50, sigma=4.0)
    below, above = spec.build(make_run()), spec.build(make_run())
    for guard in (below, above):
        fill(guard, make_gradients, losses)
    assert below.gradients_ready(make_gradients(51, loss=limit - 1e-9)) is None
    answer = above.gradients_ready(make_gradients(51, loss=limit + 1e-9))
    assert isinstance(answer, Skip)
    assert "step 51" in answer.reason


def test_the_factor_is_of_the_mean(make_run: MakeRun, make_gradients: MakeGradients) -> None:
    guard = LossSpikeGuardSpec(window=4, sigma=None, factor=2.0).build(make_run())
    fill(guard, make_gradients, [1.0, 2.0, 3.0, 2.0])
    assert guard.gradients_ready(make_gradients(5, loss=4.0)) is None
    assert guard.gradients_ready(make_gradients(6, loss=5.6)) is not None


def test_nothing_is_a_spike_before_the_window_is_full(
    make_run: MakeRun, make_gradients: MakeGradients
) -> None:
    guard = LossSpikeGuardSpec(window=4).build(make_run())
    fill(guard, make_gradients, [1.0, 1.1, 900.0])


def test_a_spike_does_not_enter_the_window(
    make_run: MakeRun, make_gradients: MakeGradients
) -> None:
    guard = LossSpikeGuardSpec(window=4, factor=2.0, sigma=None).build(make_run())
    fill(guard, make_gradients, [1.0] * 4)
    for step in range(5):
        assert guard.gradients_ready(make_gradients(step, loss=2.5)) is not None


def test_a_loss_that_is_not_finite_is_left_to_the_nan_monitor(
    make_run: MakeRun, make_gradients: MakeGradients
) -> None:
    guard = LossSpikeGuardSpec(window=2).build(make_run())
    fill(guard, make_gradients, [1.0, 1.0, math.inf, math.nan])
    assert guard.state_dict()["losses"] == [1.0, 1.0]


def test_the_policy_stop_skips_and_then_stops(
    make_run: MakeRun, make_step: MakeStep, make_gradients: MakeGradients
) -> None:
    guard = LossSpikeGuardSpec(window=2, policy="stop").build(make_run())
    fill(guard, make_gradients, [1.0, 1.2])
    assert guard.step_finished(make_step(2)) is None
    assert isinstance(guard.gradients_ready(make_gradients(3, loss=9.0)), Skip)
    answer = guard.step_finished(make_step(3))
    assert isinstance(answer, Stop)
    assert "step 3: loss 9.0000" in answer.reason
    assert guard.step_finished(make_step(4)) is None


def test_a_new_level_ends_the_run(
    make_run: MakeRun, make_step: MakeStep, make_gradients: MakeGradients
) -> None:
    spec = LossSpikeGuardSpec(window=2, max_consecutive_skips=2)
    guard = spec.build(make_run())
    fill(guard, make_gradients, [1.0, 1.2])
    for step in (3, 4):
        assert isinstance(guard.gradients_ready(make_gradients(step, loss=9.0)), Skip)
        assert guard.step_finished(make_step(step)) is None
    resumed = spec.build(make_run())
    resumed.load_state_dict(guard.state_dict())
    assert isinstance(resumed.gradients_ready(make_gradients(5, loss=9.0)), Skip)
    answer = resumed.step_finished(make_step(5))
    assert isinstance(answer, Stop)
    assert "3 steps in a row" in answer.reason


@pytest.mark.parametrize("fields", [{"sigma": None}, {"sigma": 0.0}])
def test_a_guard_without_a_criterion_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="sigma"):
        LossSpikeGuardSpec(**fields)
