"""Small runs through the public door, as processes: layouts, interruptions, endings."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).parent / "fit_worker.py"
Metrics = dict[int, dict[str, float]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer of 60 words, on disk."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(59)} | {"<eos>": 59}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(folder)
    return str(folder)


def run(arguments: dict[str, Any], world_size: int = 1, expect: int = 0) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    base = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    processes = []
    for rank in range(world_size):
        ranks = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps(arguments)],
                env=base | (ranks if world_size > 1 else {}) | {"OMP_NUM_THREADS": "1"},
            )
        )
    assert [process.wait(timeout=300) for process in processes] == [expect] * world_size


def read(arguments: dict[str, Any]) -> Metrics:
    """Return a run's metrics by step, without those that are times."""
    file = Path(arguments["root"]) / arguments["name"] / "metrics.jsonl"
    found: Metrics = {}
    for line in file.read_text("utf-8").splitlines():
        values = json.loads(line)
        found.setdefault(values["step"], {}).update(
            {k: v for k, v in values.items() if k != "time" and not k.startswith("trainer/")}
        )
    return found


@pytest.fixture(scope="module")
def reference(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An uninterrupted run of 12 steps (two epochs and a bit) in one process."""
    arguments = {
        "tokenizer": tokenizer,
        "root": str(tmp_path_factory.mktemp("runs")),
        "name": "reference",
        "microbatch": 8,
        "duration": "12ba",
    }
    run(arguments)
    return arguments


def test_the_reference_learns_and_evaluates(reference: dict[str, Any]) -> None:
    metrics = read(reference)
    assert sorted(metrics) == list(range(1, 13))
    assert metrics[12]["loss/train/total"] < metrics[1]["loss/train/total"]
    for step in (6, 12):
        cross_entropy = metrics[step]["metrics/eval/LanguageCrossEntropy"]
        assert metrics[step]["metrics/eval/LanguagePerplexity"] == math.exp(cross_entropy)
    folder = Path(reference["root"]) / "reference"
    assert json.loads((folder / "run.json").read_text("utf-8"))["status"] == "finished"
    saved = sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir())
    assert saved == ["step-000005", "step-000010", "step-000012"]
    assert (folder / "loss.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("world_size", "microbatch", "fsdp"),
    [
        (1, 1, None),
        (1, 3, None),
        (2, 4, None),
        (2, 3, None),
        (2, 1, {"sharding_strategy": "FULL_SHARD"}),
        (2, 4, {"sharding_strategy": "SHARD_GRAD_OP", "activation_checkpointing": True}),
    ],
)
def test_every_layout_gives_the_same_losses_and_norms(
    reference: dict[str, Any],
    tmp_path: Path,
    world_size: int,
    microbatch: int,
    fsdp: dict[str, Any] | None,
) -> None:
    own = reference | {"root": str(tmp_path), "name": "own", "microbatch": microbatch, "fsdp": fsdp}
    run(own, world_size)
    expected, found = read(reference), read(own)
    assert sorted(found) == sorted(expected)
    for step, values in expected.items():
        for key, value in values.items():
            assert found[step][key] == pytest.approx(value, rel=2e-6), (step, key)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_killed_run_goes_on_bit_for_bit(
    reference: dict[str, Any], tmp_path: Path, world_size: int
) -> None:
    fsdp = {"sharding_strategy": "FULL_SHARD"} if world_size > 1 else None
    whole = reference | {"root": str(tmp_path), "name": "whole", "dropout": 0.1, "fsdp": fsdp}
    whole["microbatch"] = 2
    run(whole, world_size)
    # Steps 6 and 7 are made, lost with the process, and made again from the checkpoint of step 5.
    killed = whole | {"name": "killed", "autoresume": True, "kill": [7, "kill"]}
    run(killed, world_size, expect=9)
    run(killed | {"kill": None}, world_size)
    assert read(killed) == read(whole)


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(
    reference: dict[str, Any], tmp_path: Path
) -> None:
    own = reference | {"root": str(tmp_path), "name": "own", "autoresume": True}
    run(own | {"kill": [8, "stop"]})
    record = json.loads((tmp_path / "own" / "run.json").read_text("utf-8"))
    assert (record["status"], record["reason"]) == ("stopped", "enough")
    assert (tmp_path / "own" / "checkpoints" / "step-000008" / "manifest.json").is_file()
    run(own)
    assert read(own) == read(reference)


def test_a_sharded_run_goes_on_in_one_process(reference: dict[str, Any], tmp_path: Path) -> None:
    own = reference | {"root": str(tmp_path), "name": "own", "autoresume": True, "microbatch": 2}
    run(own | {"kill": [7, "stop"], "fsdp": {"sharding_strategy": "FULL_SHARD"}}, 2)
    run(own)
    expected, found = read(reference), read(own)
    for step, values in expected.items():
        for key, value in values.items():
            assert found[step][key] == pytest.approx(value, rel=2e-6), (step, key)
