"""lr_monitor, memory_monitor, optimizer_monitor, scheduled_gc, generate_callback, run_timeout."""

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from foundry_sdk.callbacks.garbage import ScheduledGCSpec
from foundry_sdk.callbacks.generation import GenerateCallbackSpec
from foundry_sdk.callbacks.lr import LRMonitorSpec
from foundry_sdk.callbacks.memory import MemoryMonitor, MemoryMonitorSpec
from foundry_sdk.callbacks.optimizer_norms import OptimizerMonitorSpec
from foundry_sdk.errors import SpecError
from foundry_sdk.events import (
    EvaluationFinished,
    EvaluationStarted,
    GradientsReady,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
    Table,
)

MakeRun = Callable[..., RunStarted]
MakeStep = Callable[..., StepFinished]
MakeGradients = Callable[..., GradientsReady]
MakeEvaluation = Callable[..., EvaluationFinished]


def test_lr_keys_are_those_of_the_reference(make_run: MakeRun, make_step: MakeStep) -> None:
    logged = LRMonitorSpec().build(make_run()).step_finished(make_step(1))
    assert logged == {"lr-DecoupledAdamW/group0": 1e-3, "lr-DecoupledAdamW/group1": 2e-3}


def test_the_process_memory_is_that_of_the_system(
    make_run: MakeRun, make_step: MakeStep, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = MemoryMonitorSpec().build(make_run())
    assert "no CUDA device" in caplog.text
    logged = monitor.step_finished(make_step(1))
    assert set(logged) == {"memory/host_rss", "memory/peak_host_rss"}
    expected = psutil.Process().memory_info().rss / 1e9
    assert logged["memory/host_rss"] == pytest.approx(expected, rel=0.05)
    assert logged["memory/peak_host_rss"] >= logged["memory/host_rss"] * 0.99


def test_bytes_become_gigabytes_of_five_digits(make_step: MakeStep) -> None:
    statistics: Mapping[str, Any] = {
        "allocated_bytes.all.current": 12_345_678_901,
        "num_alloc_retries": 3,
        "other": 1,
    }
    keys = {
        "allocated_bytes.all.current": "current_allocated_mem",
        "num_alloc_retries": "alloc_retries",
        "absent": "absent",
    }
    logged = MemoryMonitor(lambda: statistics, keys=keys).step_finished(make_step(1))
    assert logged["memory/current_allocated_mem"] == 12.346
    assert logged["memory/alloc_retries"] == 3
    assert "memory/absent" not in logged


@pytest.mark.gpu
def test_cuda_memory_is_that_of_the_allocator(make_run: MakeRun, make_step: MakeStep) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    held = torch.zeros(25_000_000, device="cuda")
    logged = MemoryMonitorSpec().build(make_run(device="cuda")).step_finished(make_step(1))
    expected = float(f"{torch.cuda.memory_allocated() / 1e9:.5g}")
    assert logged["memory/current_allocated_mem"] == expected >= held.numel() * 4 / 1e9
    assert len([key for key in logged if key.startswith("memory/current_")]) == 4
    assert len([key for key in logged if key.startswith("memory/peak_")]) == 5


def test_norms_are_logged_at_the_interval(
    make_run: MakeRun, make_step: MakeStep, make_gradients: MakeGradients
) -> None:
    run = make_run()
    probe: Any = run.probe
    probe.gradients, probe.parameters = {"w": 3.0, "b": 4.0}, {"w": 10.0, "b": 1.0}
    probe.optimizer = {"moment/w": 0.5, "second_moment_sqrt/w": 0.25}
    monitor = OptimizerMonitorSpec(batch_log_interval=2).build(run)
    answers = []
    for step in (1, 2, 3):
        monitor.gradients_ready(make_gradients(step, gradient_norm=50.0))
        answers.append(monitor.step_finished(make_step(step)))
    assert answers[0] is answers[2] is None
    assert answers[1] == {
        "l2_norm/grad/global": 50.0,
        "l2_norm/grad/w": 3.0,
        "l2_norm/grad/b": 4.0,
        "l2_norm/param/w": 10.0,
        "l2_norm/param/b": 1.0,
        "l2_norm/moment/w": 0.5,
        "l2_norm/second_moment_sqrt/w": 0.25,
    }
    assert len(probe.calls) == 1


def test_a_skipped_update_has_no_norms(
    make_run: MakeRun, make_step: MakeStep, make_gradients: MakeGradients
) -> None:
    monitor = OptimizerMonitorSpec(batch_log_interval=1).build(make_run())
    monitor.gradients_ready(make_gradients(1))
    assert monitor.step_finished(make_step(1, skipped="spike")) is None


def test_only_gradients_where_nothing_else_is_wanted(
    make_run: MakeRun, make_step: MakeStep, make_gradients: MakeGradients
) -> None:
    run = make_run()
    probe: Any = run.probe
    probe.gradients, probe.parameters = {"w": 3.0}, {"w": 10.0}
    monitor = OptimizerMonitorSpec(batch_log_interval=1, log_optimizer_metrics=False).build(run)
    monitor.gradients_ready(make_gradients(1))
    logged = monitor.step_finished(make_step(1))
    assert logged == {"l2_norm/grad/global": 1.0, "l2_norm/grad/w": 3.0}


@pytest.fixture
def collector() -> Iterator[None]:
    yield
    gc.callbacks.clear()
    gc.enable()


@pytest.mark.usefixtures("collector")
def test_garbage_is_collected_at_the_interval_and_at_no_other_step(
    make_run: MakeRun, make_evaluation: MakeEvaluation
) -> None:
    seen: list[int] = []
    run = make_run()
    spec = ScheduledGCSpec(batch_interval=4, gen_1_batch_interval=2)
    scheduled = spec.build(run)
    scheduled.run_started(run)
    assert not gc.isenabled()
    gc.callbacks.append(
        lambda phase, info: seen.append(info["generation"]) if phase == "start" else None
    )
    by_step = {}
    for step in range(1, 8):
        seen.clear()
        scheduled.step_started(StepStarted(step=step, epoch=0))
        by_step[step] = list(seen)
    assert by_step == {1: [], 2: [], 3: [1], 4: [], 5: [2], 6: [], 7: [1]}
    scheduled.evaluation_started(EvaluationStarted(step=7, label="eval", batches=None))
    assert gc.isenabled()
    scheduled.evaluation_finished(make_evaluation(7, 1.0))
    assert not gc.isenabled()
    scheduled.run_finished(RunFinished(step=7, seconds=1.0, stopped_by=None))
    assert gc.isenabled()


@pytest.mark.usefixtures("collector")
def test_a_collector_that_was_off_stays_off(make_run: MakeRun) -> None:
    gc.disable()
    run = make_run()
    scheduled = ScheduledGCSpec(batch_interval=1, eval_keep_disabled=True).build(run)
    scheduled.run_started(run)
    scheduled.evaluation_started(EvaluationStarted(step=1, label="eval", batches=None))
    assert not gc.isenabled()
    scheduled.run_finished(RunFinished(step=1, seconds=1.0, stopped_by=None))
    assert not gc.isenabled()


def test_prompts_are_continued_at_the_interval(make_run: MakeRun, make_step: MakeStep) -> None:
    run = make_run()
    probe: Any = run.probe
    spec = GenerateCallbackSpec(
        prompts=["a", "b", "c"], interval="5ba", batch_size=2, max_new_tokens=7
    )
    callback = spec.build(run)
    answers = [callback.step_finished(make_step(step)) for step in range(1, 11)]
    rows = (("a", "A"), ("b", "B"), ("c", "C"))
    table = Table(name="generations", columns=("prompt", "generation"), rows=rows)
    assert answers == [table if step % 5 == 0 else None for step in range(1, 11)]
    assert [call["prompts"] for call in probe.calls] == [("a", "b"), ("c",)] * 2
    assert {call["temperature"] for call in probe.calls} == {0.0}
    assert {call["max_new_tokens"] for call in probe.calls} == {7}


def test_sampling_options_are_passed_on(make_run: MakeRun, make_step: MakeStep) -> None:
    run = make_run()
    probe: Any = run.probe
    spec = GenerateCallbackSpec(
        prompts=["a"], interval="1ba", do_sample=True, temperature=0.7, top_k=5, top_p=0.9, seed=3
    )
    spec.build(run).step_finished(make_step(1))
    (call,) = probe.calls
    assert (call["temperature"], call["top_k"], call["top_p"], call["seed"]) == (0.7, 5, 0.9, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": ["a"], "interval": "1ba", "top_k": 5}, "top_k has no effect"),
        ({"prompts": ["a"], "interval": "1ba", "do_sample": True, "top_p": 1.5}, "at most 1"),
        ({"prompts": "a", "interval": "1ba"}, "list of texts"),
        ({"prompts": ["a"], "interval": "1xy"}, "unknown unit"),
    ],
)
def test_options_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        GenerateCallbackSpec(**fields)


def test_a_silent_process_ends_and_shows_its_stack() -> None:
    code = """
import time
from foundry_sdk.callbacks.timeout import RunTimeout
from foundry_sdk.events import StepStarted
def hang_in_here():
    time.sleep(600)
watch = RunTimeout(0.5)
watch.step_started(StepStarted(step=1, epoch=0))
hang_in_here()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "hang_in_here" in done.stderr


def test_a_finished_run_is_not_ended() -> None:
    code = """
import time
from foundry_sdk.callbacks.timeout import RunTimeout
from foundry_sdk.events import RunFinished, StepStarted
watch = RunTimeout(0.5)
watch.step_started(StepStarted(step=1, epoch=0))
watch.run_finished(RunFinished(step=1, seconds=1.0, stopped_by=None))
time.sleep(1.0)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0
