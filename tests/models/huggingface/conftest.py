"""Runs that several files look at."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from families import RUNS, saved
from hf_ranks import WORKER, start, tokenizer_in


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count what looks at all those runs among the slow tests."""
    for item in items:
        if "results" in getattr(item, "fixturenames", ()) and item.path.parent == WORKER.parent:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="package")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tokenizer_in(tmp_path_factory.mktemp("tokenizer"))


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
