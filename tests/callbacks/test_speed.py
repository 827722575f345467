"""speed_monitor and runtime_estimator against numbers by hand."""

from collections.abc import Callable

import pytest

from foundry_sdk.callbacks.peaks import peak_flops
from foundry_sdk.callbacks.remaining import RuntimeEstimatorSpec
from foundry_sdk.callbacks.speed import SpeedMonitorSpec
from foundry_sdk.events import EvaluationFinished, RunStarted, StepFinished
from foundry_sdk.units import Duration

MakeRun = Callable[..., RunStarted]
MakeStep = Callable[..., StepFinished]
MakeEvaluation = Callable[..., EvaluationFinished]


def test_rates_are_differences_over_the_window(make_run: MakeRun, make_step: MakeStep) -> None:
    monitor = SpeedMonitorSpec(window_size=3, gpu_flops_available=1e6).build(make_run())
    logged = [monitor.step_finished(make_step(step)) for step in range(1, 5)]
    assert not any(key.startswith("throughput") for key in logged[2])
    rates = {key: value for key, value in logged[3].items() if key.startswith("throughput")}
    # A step takes 0.5 s: 2 steps, 8 samples, 80 tokens, 80 * 6000 FLOPs a second on two ranks.
    assert rates == pytest.approx(
        {
            "throughput/batches_per_sec": 2.0,
            "throughput/samples_per_sec": 8.0,
            "throughput/tokens_per_sec": 80.0,
            "throughput/flops_per_sec": 480_000.0,
            "throughput/device/batches_per_sec": 1.0,
            "throughput/device/samples_per_sec": 4.0,
            "throughput/device/tokens_per_sec": 40.0,
            "throughput/device/flops_per_sec": 240_000.0,
            "throughput/device/mfu": 0.24,
            "throughput/data_wait_share": 0.2,
        }
    )


def test_the_window_moves(make_run: MakeRun, make_step: MakeStep) -> None:
    monitor = SpeedMonitorSpec(window_size=2).build(make_run())
    seconds = [1.0, 2.0, 3.0, 3.5, 4.0]
    for step, second in enumerate(seconds, start=1):
        logged = monitor.step_finished(make_step(step, seconds=second))
    assert logged["throughput/batches_per_sec"] == pytest.approx(2 / (4.0 - 3.0))


def test_times_count_evaluation_apart(
    make_run: MakeRun, make_step: MakeStep, make_evaluation: MakeEvaluation
) -> None:
    spec = SpeedMonitorSpec(time_unit="minutes")
    monitor = spec.build(make_run())
    monitor.evaluation_finished(make_evaluation(1, 2.0, seconds=30.0))
    resumed = spec.build(make_run())
    resumed.load_state_dict(monitor.state_dict())
    resumed.evaluation_finished(make_evaluation(1, 2.0, seconds=60.0))
    logged = resumed.step_finished(make_step(240))
    assert logged == pytest.approx({"time/train": 2.0, "time/val": 1.5, "time/total": 3.5})


def test_without_flops_there_is_no_utilization(make_run: MakeRun, make_step: MakeStep) -> None:
    monitor = SpeedMonitorSpec(window_size=1).build(make_run(flops_per_token=None))
    logged = [monitor.step_finished(make_step(step)) for step in (1, 2)][-1]
    assert not any("flops" in key or "mfu" in key for key in logged)


def test_an_unknown_device_is_told_once(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    SpeedMonitorSpec().build(make_run(device="cuda", device_name="Imaginary X1"))
    assert "Imaginary X1" in caplog.text
    caplog.clear()
    SpeedMonitorSpec().build(make_run(device="cuda", device_name="NVIDIA H200"))
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "amp_bf16", 989.5e12),
        ("NVIDIA H100 80GB HBM3", "amp_fp8", 1.979e15),
        ("NVIDIA H100 80GB HBM3", "fp32", 67e12),
        ("NVIDIA H100 PCIe", "amp_bf16", 756.5e12),
        ("NVIDIA H200", "amp_fp16", 989.5e12),
        ("NVIDIA A100-SXM4-80GB", "amp_bf16", 312e12),
        ("NVIDIA A100-PCIE-40GB", "fp32", 19.5e12),
        ("NVIDIA A10", "amp_bf16", 125e12),
        ("NVIDIA A10G", "amp_bf16", None),
        ("Tesla V100-SXM2-32GB", "amp_fp16", 125e12),
        ("Tesla V100-SXM2-32GB", "amp_bf16", None),
        ("Tesla V100-PCIE-16GB", "amp_fp16", 112e12),
        ("Tesla T4", "amp_fp16", 65e12),
        ("NVIDIA T400", "amp_fp16", None),
        ("x86_64", "fp32", None),
    ],
)
def test_peaks(name: str, precision: str, expected: float | None) -> None:
    assert peak_flops(name, precision) == expected


def test_the_estimate_is_exact_for_a_constant_rate(make_run: MakeRun, make_step: MakeStep) -> None:
    estimator = RuntimeEstimatorSpec(time_unit="seconds").build(make_run())
    assert estimator.step_finished(make_step(1)) is None
    for step in (2, 50):
        logged = estimator.step_finished(make_step(step))
        assert logged == pytest.approx({"time/remaining_estimate": 0.5 * (100 - step)})


def test_skipped_steps_do_not_count(make_run: MakeRun, make_step: MakeStep) -> None:
    estimator = RuntimeEstimatorSpec(skip_batches=1, time_unit="seconds").build(make_run())
    # The first step compiles for 60 s.
    estimator.step_finished(make_step(1, seconds=60.0, step_seconds=60.0))
    logged = estimator.step_finished(make_step(2, seconds=61.0, step_seconds=1.0))
    assert logged == pytest.approx({"time/remaining_estimate": 98.0})


def test_without_skipping_the_first_step_gives_an_estimate(
    make_run: MakeRun, make_step: MakeStep
) -> None:
    estimator = RuntimeEstimatorSpec(skip_batches=0, time_unit="seconds").build(make_run())
    logged = estimator.step_finished(make_step(1))
    assert logged == pytest.approx({"time/remaining_estimate": 49.5})


def test_evaluations_still_to_come_are_added(
    make_run: MakeRun, make_step: MakeStep, make_evaluation: MakeEvaluation
) -> None:
    spec = RuntimeEstimatorSpec(time_unit="seconds")
    estimator = spec.build(make_run())
    estimator.evaluation_finished(make_evaluation(0, 1.0, seconds=1000.0))
    for step in range(1, 41):
        logged = estimator.step_finished(make_step(step))
        if step % 10 == 0:
            # The first is slow, as it warms up.
            seconds = 20.0 if step == 10 else 4.0
            estimator.evaluation_finished(make_evaluation(step, 1.0, seconds=seconds))
    # 60 steps of 0.5 s; of 10 evaluations 4 - 1 were done when step 40 ended, 7 are left.
    assert logged == pytest.approx({"time/remaining_estimate": 30.0 + 7 * 4.0})
    resumed = spec.build(make_run())
    resumed.load_state_dict(estimator.state_dict())
    resumed.step_finished(make_step(41))
    logged = resumed.step_finished(make_step(42))
    assert logged == pytest.approx({"time/remaining_estimate": 29.0 + 6 * 4.0})


def test_tokens_measure_the_run_where_steps_do_not(make_run: MakeRun, make_step: MakeStep) -> None:
    run = make_run(max_duration=Duration.parse("4000tok"), total_steps=None)
    estimator = RuntimeEstimatorSpec(time_unit="seconds").build(run)
    estimator.step_finished(make_step(1))
    logged = estimator.step_finished(make_step(20))
    assert logged == pytest.approx({"time/remaining_estimate": 40.0})


def test_epochs_of_unknown_length_give_no_estimate(make_run: MakeRun, make_step: MakeStep) -> None:
    run = make_run(max_duration=Duration.parse("2ep"), total_steps=None)
    estimator = RuntimeEstimatorSpec().build(run)
    assert [estimator.step_finished(make_step(step)) for step in (1, 2, 3)] == [None] * 3
