"""Runs of transformers models: one process and two sharded ones, with weights and without."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from families import RUNS, make

from foundry_sdk.checkpoint.ranks import SoloRanks
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.export.trained import load_trained
from foundry_sdk.models.huggingface.model import HFModel


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line["loss/train/total"] for line in lines if "loss/train/total" in line]


@pytest.mark.parametrize("name", RUNS)
def test_two_sharded_ranks_train_as_one_process(results: Path, name: str) -> None:
    alone, sharded = (losses(results / f"{name}-{ranks}") for ranks in (1, 2))
    assert len(alone) == len(sharded) == 6
    assert sharded == pytest.approx(alone, rel=1e-6)
    if not name.startswith("lora"):  # which begin slowly
        assert alone[-1] < alone[0]


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_each_rank_reads_its_part_of_the_weights(results: Path, name: str) -> None:
    (whole,) = (read_bytes(results / f"{name}-1", rank) for rank in range(1))
    parts = [read_bytes(results / f"{name}-2", rank) for rank in range(2)]
    assert sum(parts) == whole > 0
    assert max(parts) <= 0.51 * whole


@pytest.mark.parametrize("name", RUNS)
def test_checkpoints_hold_the_same_weights_once(results: Path, name: str) -> None:
    models = []
    for ranks in (1, 2):
        trained = load_trained(results / f"{name}-{ranks}")
        store = CheckpointStore(trained.checkpoint.parent, SoloRanks())
        held = store.at(trained.checkpoint).manifest.tensors
        tensors = [name for name in held if name.startswith("model.")]
        assert ("model.model.lm_head.weight" in tensors) is name.startswith("untied")
        if name.startswith("lora"):
            assert all("lora_" in tensor for tensor in tensors)
        models.append(dict(trained.model.named_parameters()))
    for parameter, value in models[0].items():
        torch.testing.assert_close(value, models[1][parameter], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["lora", "lora-all"])
def test_only_adapters_are_trained(results: Path, name: str) -> None:
    trained = load_trained(results / f"{name}-2").model
    assert isinstance(trained, HFModel)
    before = make(RUNS[name]["family"])
    for parameter, value in trained.model.named_parameters():
        if "lora_" not in parameter:
            start = before.get_parameter(parameter.replace(".base_layer", ""))
            assert torch.equal(value, start), parameter
        elif "lora_B" in parameter:
            assert float(value.detach().abs().max()) > 0, parameter  # it began as zero


def read_bytes(run: Path, rank: int) -> int:
    return int(json.loads((run / f"bytes-{rank}.json").read_text("utf-8")))
