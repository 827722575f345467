"""Runs with Muon, as processes: alone, sharded over two ranks, and resumed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foundry_sdk.testing import tiny_tokenizer, write_tiny_mds

WORKER = Path(__file__).parent / "muon_worker.py"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("muon")
    data = write_tiny_mds(folder / "mds", rows=64)
    return {
        "tokenizer": tiny_tokenizer(folder / "tokenizer").name,
        "data": str(data),
        "root": str(folder / "runs"),
    }


def train(
    inputs: dict[str, Any], name: str, duration: str = "20ba", ranks: int = 1
) -> dict[int, dict[str, float]]:
    given = inputs | {"name": name, "duration": duration, "sharded": ranks > 1}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    base = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    processes = []
    for rank in range(ranks):
        mine = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        env = base | (mine if ranks > 1 else {}) | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(WORKER), json.dumps(given)]
        processes.append(
            subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)  # noqa: S603
        )
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, told
    found: dict[int, dict[str, float]] = {}
    lines = (Path(inputs["root"]) / name / "metrics.jsonl").read_text("utf-8").splitlines()
    for line in lines:
        values = json.loads(line)
        found.setdefault(values["step"], {}).update(values)
    return found


@pytest.fixture(scope="module")
def alone(inputs: dict[str, Any]) -> dict[int, dict[str, float]]:
    return train(inputs, "alone")


def test_a_model_learns(alone: dict[int, dict[str, float]]) -> None:
    assert alone[20]["loss/train/total"] < 0.8 * alone[1]["loss/train/total"]
    assert alone[20]["muon/matrices"] == 8
    assert 0 < alone[20]["muon/persistence"] <= 1


def test_two_ranks_with_half_of_each_matrix_do_the_same(
    inputs: dict[str, Any], alone: dict[int, dict[str, float]]
) -> None:
    sharded = train(inputs, "sharded", ranks=2)
    keys = [key for key in alone[20] if key.startswith("muon/")]
    for step in range(1, 21):
        loss = alone[step]["loss/train/total"]
        assert sharded[step]["loss/train/total"] == pytest.approx(loss, rel=1e-4)
    for key in keys:
        assert sharded[20][key] == pytest.approx(alone[20][key], rel=1e-3)


def test_a_resumed_run_goes_on_to_the_bit(
    inputs: dict[str, Any], alone: dict[int, dict[str, float]]
) -> None:
    train(inputs, "halved", duration="10ba")
    resumed = train(inputs, "halved")
    for step in range(11, 21):
        assert resumed[step]["loss/train/total"] == alone[step]["loss/train/total"]
