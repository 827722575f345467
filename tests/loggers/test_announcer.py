"""The lines around a run, to the letter."""

import io
from pathlib import Path
from typing import Any

from foundry_sdk.events import CheckpointSaved, RunFinished, RunStarted
from foundry_sdk.loggers.announcer import Announcer
from foundry_sdk.units import Duration


def started(**changes: Any) -> RunStarted:
    values: dict[str, Any] = {
        "run_name": "first",
        "run_dir": Path("runs/first"),
        "rank": 0,
        "world_size": 2,
        "device": "cuda",
        "device_name": "NVIDIA H100",
        "precision": "amp_bf16",
        "max_duration": Duration.parse("100ba"),
        "total_steps": 100,
        "step": 0,
        "global_batch": 64,
        "microbatch": 8,
        "sequence_length": 2048,
        "parameters": 125_311_488,
        "flops_per_token": None,
        "resolved_spec": {"model": {"name": "mpt_causal_lm"}},
        "choices": {"loss": "fused_crossentropy"},
        "probe": None,
    }
    return RunStarted(**(values | changes))


def test_the_lines_of_a_run() -> None:
    stream = io.StringIO()
    announcer = Announcer(stream)
    announcer.run_started(started(step=20))
    announcer.checkpoint_saved(
        CheckpointSaved(
            step=50, path=Path("runs/first/checkpoints/step-000050"), seconds=1.25, bytes=1_500_000
        )
    )
    announcer.run_finished(RunFinished(step=60, seconds=1234.5, stopped_by="SIGTERM"))
    assert stream.getvalue().splitlines() == [
        "run first in runs/first",
        "  mpt_causal_lm, 125,311,488 parameters, amp_bf16, on 2 x NVIDIA H100",
        "  64 sequences of 2048 tokens a step, 8 a forward, until 100ba",
        "  chosen: loss: fused_crossentropy",
        "  going on from step 20",
        "checkpoint runs/first/checkpoints/step-000050 (1.5 MB in 1.2 s)",
        "run first stopped (SIGTERM) after 60 steps, 1,234.5 s of training",
        "  look at it: foundry report runs/first",
    ]


def test_a_failure_is_named() -> None:
    stream = io.StringIO()
    announcer = Announcer(stream)
    announcer.run_started(started())
    announcer.run_finished(RunFinished(step=3, seconds=1.0, stopped_by="x", error="loss is NaN"))
    assert "run first failed: loss is NaN after 3 steps" in stream.getvalue()
