"""Ranks and collectives, alone and as two gloo processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from foundry_sdk.errors import LaunchError, SpecError
from foundry_sdk.training.runtime import Runtime, _check_environment

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_ranks(script: Path, arguments: list[str], world_size: int) -> None:
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(world_size)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * world_size


def test_collectives_of_two_ranks(tmp_path: Path) -> None:
    start_ranks(HERE / "runtime_worker.py", [str(tmp_path)], 2)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text("utf-8"))
        assert found == {
            "rank": rank,
            "world_size": 2,
            "counts": [3, 20],
            "all_true": True,
            "one_false": False,
            "any": True,
            "gathered": [{"rank": 0, "text": ""}, {"rank": 1, "text": "é"}],
            "broadcast": "from 0",
        }


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    runtime = Runtime.start(precision="fp32")
    try:
        assert (runtime.rank, runtime.world_size) == (0, 1)
        assert runtime.sum_counts([4]) == [4]
        assert runtime.gather("x") == ["x"]
        assert not runtime.any_rank(False)
    finally:
        runtime.close()


def test_float16_needs_a_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SpecError, match="amp_fp16 needs a GPU"):
        Runtime.start(precision="amp_fp16")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"RANK": "one"}, "RANK='one': expected a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR, MASTER_PORT not set"),
    ],
)
def test_an_environment_that_makes_no_sense(environment: dict[str, str], words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        _check_environment(environment)
