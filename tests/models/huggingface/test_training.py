"""Runs of transformers models: one process and two sharded ones, with weights and without."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from families import saved

WORKER = Path(__file__).with_name("hf_worker.py")
RUNS = {
    "tied": {"family": "gpt2", "pretrained": True, "fused": True},
    "tied-new": {"family": "gpt2", "pretrained": False},
    "untied": {"family": "llama", "pretrained": True},
    "untied-new": {"family": "llama", "pretrained": False, "fused": True},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(59)} | {"<eos>": 59}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def results(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run everything; the folder of runs, named ``<run>-<ranks>``."""
    root = tmp_path_factory.mktemp("runs")
    folders = {family: str(saved(family, root)) for family in ("gpt2", "llama")}
    arguments = []
    for name, own in RUNS.items():
        model = {
            "pretrained_model_name_or_path": folders[str(own["family"])],
            "pretrained": own["pretrained"],
        }
        fused = own.get("fused", False)
        arguments.append({"name": name, "model": model, "fused": fused})
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


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line["loss/train/total"] for line in lines if "loss/train/total" in line]


@pytest.mark.parametrize("name", RUNS)
def test_two_sharded_ranks_train_as_one_process(results: Path, name: str) -> None:
    alone, sharded = (losses(results / f"{name}-{ranks}") for ranks in (1, 2))
    assert len(alone) == len(sharded) == 6
    assert sharded == pytest.approx(alone, rel=1e-6)
    assert alone[-1] < alone[0]


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_each_rank_reads_its_part_of_the_weights(results: Path, name: str) -> None:
    (whole,) = (read_bytes(results / f"{name}-1", rank) for rank in range(1))
    parts = [read_bytes(results / f"{name}-2", rank) for rank in range(2)]
    assert sum(parts) == whole > 0
    assert max(parts) <= 0.51 * whole


@pytest.mark.parametrize("name", RUNS)
def test_checkpoints_hold_the_same_weights_once(results: Path, name: str) -> None:
    from foundry_sdk.checkpoint.ranks import SoloRanks
    from foundry_sdk.checkpoint.state import load_into
    from foundry_sdk.checkpoint.store import CheckpointStore
    from foundry_sdk.models.huggingface.spec import HFCausalLMSpec

    own = RUNS[name]
    models = []
    for ranks in (1, 2):
        folder = results / f"{name}-{ranks}" / "checkpoints"
        store = CheckpointStore(folder, SoloRanks())
        checkpoint = store.newest()
        assert checkpoint is not None
        tensors = [n for n in checkpoint.manifest.tensors if n.startswith("model.")]
        assert ("model.model.lm_head.weight" in tensors) is name.startswith("untied")
        source = str(results.parent / str(own["family"]))
        model = HFCausalLMSpec(pretrained_model_name_or_path=source).build(device="cpu")
        load_into(store, checkpoint, model)
        models.append(dict(model.named_parameters()))
    for parameter, value in models[0].items():
        # Adam divides rounding by rounding where a gradient is nearly zero
        difference = (value - models[1][parameter]).abs()
        assert float(difference.detach().median()) < 1e-6, parameter


def read_bytes(run: Path, rank: int) -> int:
    return int(json.loads((run / f"bytes-{rank}.json").read_text("utf-8")))
