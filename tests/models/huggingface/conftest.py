"""Runs that several files look at."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from families import RUNS, saved

WORKER = Path(__file__).with_name("hf_worker.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count what looks at all those runs among the slow tests."""
    for item in items:
        if "results" in getattr(item, "fixturenames", ()) and item.path.parent == WORKER.parent:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="package")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(59)} | {"<eos>": 59}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="package")
def results(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run everything; the folder of runs, named ``<run>-<ranks>``."""
    root = tmp_path_factory.mktemp("runs")
    folders = {family: str(saved(family, root)) for family in ("gpt2", "llama", "t5")}
    arguments = []
    for name, own in RUNS.items():
        options = {key: own[key] for key in ("pretrained", "peft_config") if key in own}
        model = {"pretrained_model_name_or_path": folders[own["family"]], **options}
        pairs, fused = own["family"] == "t5", own.get("fused", False)
        arguments.append({"name": name, "model": model, "fused": fused, "pairs": pairs})
    common = {"tokenizer": tokenizer, "root": str(root / "runs")}
    start([common | each | {"name": each["name"] + "-1"} for each in arguments], 1)
    sharded = {
        "sharding_strategy": "FULL_SHARD",
        "activation_checkpointing": True,
    }
    start([common | each | {"name": each["name"] + "-2", "fsdp": sharded} for each in arguments], 2)
    return root / "runs"


def start(runs: list[dict[str, Any]], world_size: int) -> None:
    with_ports = [arguments | {"port": free_port()} for arguments in runs]
    processes = []
    for rank in range(world_size):
        own = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
        own["OMP_NUM_THREADS"] = "1"
        if world_size > 1:
            own |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
            own |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps(with_ports)],
                env=own,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size, told


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
