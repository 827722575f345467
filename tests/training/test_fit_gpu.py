"""What only a GPU shows: the same bits twice, float16, and memory that runs out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).parent / "fit_worker.py"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(59)} | {"<eos>": 59}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(folder)
    return str(folder)


def losses(arguments: dict[str, Any]) -> list[str]:
    """Return the run's losses and norms, as text that shows every bit."""
    file = Path(arguments["root"]) / arguments["name"] / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [
        f"{line['loss/train/total'].hex()} {line['l2_norm/grad/global'].hex()}"
        for line in lines
        if "loss/train/total" in line
    ]


def run(runs: list[dict[str, Any]], expect: int = 0) -> None:
    for each in runs:
        each.setdefault("port", "29500")
    done = subprocess.run([sys.executable, str(WORKER), json.dumps(runs)], check=False)
    assert done.returncode == expect


def test_deterministic_runs_have_the_same_bits_also_when_killed(
    tokenizer: str, tmp_path: Path
) -> None:
    base = {
        "tokenizer": tokenizer,
        "root": str(tmp_path),
        "microbatch": 4,
        "duration": "12ba",
        "precision": "amp_bf16",
        "attention": "flash",
        "deterministic": True,
        "dropout": 0.1,
        "autoresume": True,
    }
    first, second, killed = (base | {"name": name} for name in ("first", "second", "killed"))
    run([killed | {"kill": [7, "kill"]}], expect=9)
    run([first, second, killed])
    assert len(losses(first)) == 12
    assert losses(second) == losses(first)
    assert losses(killed) == losses(first)


@pytest.mark.parametrize("precision", ["amp_bf16", "amp_fp16"])
def test_half_precision_follows_float32(tokenizer: str, tmp_path: Path, precision: str) -> None:
    base = {
        "tokenizer": tokenizer,
        "root": str(tmp_path),
        "microbatch": 8,
        "duration": "12ba",
        "attention": "flash",
    }
    whole, half = (base | {"name": name, "precision": name} for name in ("fp32", precision))
    run([whole, half])
    expected = [float.fromhex(line.split()[0]) for line in losses(whole)]
    found = [float.fromhex(line.split()[0]) for line in losses(half)]
    # bfloat16 has 8 bits: each loss of about 4 nats is right to a few hundredths.
    assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_updates_decided_on_the_device_are_those_decided_on_the_host(
    tokenizer: str, tmp_path: Path, optimizer: str
) -> None:
    """With a bad step that is left out; weights are float32, so both round alike but for order."""
    base = {
        "tokenizer": tokenizer,
        "root": str(tmp_path),
        "microbatch": 4,
        "duration": "12ba",
        "weights": "fp32",
        "optimizer": optimizer,
        "poison": {"forward": 9, "rank": 0, "factor": float("nan")},
        "skip_nan": True,
    }
    device, host = (base | {"name": name} for name in ("device", "host"))
    run([device, host | {"watched": True}])
    expected = [float.fromhex(line.split()[0]) for line in losses(host)]
    found = [float.fromhex(line.split()[0]) for line in losses(device)]
    assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_auto_halves_the_microbatch_when_memory_runs_out(tmp_path: Path) -> None:
    script = """
import torch
from foundry_sdk.training.feed import Drawn
from foundry_sdk.training.microbatch import Microbatching

torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.mem_get_info()[1])
module = torch.nn.Linear(1, 1, device="cuda")
sizes = []

def step(drawn, size):
    sizes.append(size)
    room = torch.empty(size, 2**26, device="cuda")  # 256 MiB a sequence
    loss = module(room[:, :1]).sum()
    loss.backward()
    return loss.detach()

microbatching = Microbatching(16, auto=True, objective=module)
microbatching.forward_backward(Drawn.__new__(Drawn), step)
assert sizes[0] == 16 and sizes[-1] in (1, 2, 3), sizes
assert microbatching.size == sizes[-1]
"""
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == 0


def test_the_search_for_a_microbatch_leaves_no_trace(tokenizer: str, tmp_path: Path) -> None:
    """With dropout: a run whose size was found has the bits of one to which it was given."""
    base = {
        "tokenizer": tokenizer,
        "root": str(tmp_path),
        "duration": "6ba",
        "precision": "amp_bf16",
        "attention": "flash",
        "dropout": 0.1,
    }
    found = base | {"name": "found", "microbatch": "auto"}
    run([found])
    record = json.loads((tmp_path / "found" / "run.json").read_text("utf-8"))
    size = int(record["choices"]["device_train_microbatch_size"].split(",")[0])
    given = base | {"name": "given", "microbatch": size}
    run([given])
    assert losses(found) == losses(given)
