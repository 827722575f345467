"""A run's first event, made by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_sdk.events import RunStarted
from foundry_sdk.units import Duration


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunStarted]:
    def make(**changes: Any) -> RunStarted:
        folder = tmp_path / "run-a"
        folder.mkdir(exist_ok=True)
        fields: dict[str, Any] = {
            "run_name": "run-a", "run_dir": folder, "rank": 0, "world_size": 1, "device": "cpu",
            "device_name": "x86_64", "precision": "fp32",
            "max_duration": Duration.parse("4ba"), "total_steps": 4, "step": 0,
            "global_batch": 4, "microbatch": 2, "sequence_length": 10, "parameters": 1000,
            "flops_per_token": 6000,
            "resolved_spec": {"optimizer": {"lr": 1e-4, "betas": [0.9, 0.95]}, "seed": 17,
                              "loss": None},
            "choices": {"attn_impl": "torch"}, "probe": None,
        }  # fmt: skip
        return RunStarted(**fields | changes)

    return make
