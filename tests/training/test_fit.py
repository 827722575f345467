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


def run(
    arguments: dict[str, Any] | list[dict[str, Any]], world_size: int = 1, expect: int = 0
) -> list[str]:
    """Run the worker, once or several times, on so many ranks; return what each wrote to stderr."""
    runs = arguments if isinstance(arguments, list) else [arguments]
    runs = [arguments | {"port": free_port()} for arguments in runs]
    base = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    processes = []
    for rank in range(world_size):
        ranks = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps(runs)],
                env=base | (ranks if world_size > 1 else {}) | {"OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [expect] * world_size, told
    return told


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


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


LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"1x1": {"microbatch": 1}, "1x3": {"microbatch": 3}},
    2: {
        "2x4": {"microbatch": 4},
        "2x3": {"microbatch": 3},
        "2x1-sharded": {"microbatch": 1, "fsdp": {"sharding_strategy": "FULL_SHARD"}},
        "2x4-partly-sharded": {
            "microbatch": 4,
            "fsdp": {"sharding_strategy": "SHARD_GRAD_OP", "activation_checkpointing": True},
        },
    },
}


@pytest.fixture(scope="module")
def layouts(
    reference: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Metrics]:
    """The reference's run in other layouts, those of one world size in the same processes."""
    root = {"root": str(tmp_path_factory.mktemp("layouts"))}
    found = {}
    for world_size, options in LAYOUTS.items():
        runs = {name: reference | root | {"name": name} | own for name, own in options.items()}
        run(list(runs.values()), world_size)
        found |= {name: read(arguments) for name, arguments in runs.items()}
    return found


@pytest.mark.parametrize("layout", [name for options in LAYOUTS.values() for name in options])
def test_every_layout_gives_the_same_losses_and_norms(
    reference: dict[str, Any], layouts: dict[str, Metrics], layout: str
) -> None:
    expected, found = read(reference), layouts[layout]
    assert sorted(found) == sorted(expected)
    for step, values in expected.items():
        for key, value in values.items():
            assert found[step][key] == pytest.approx(value, rel=2e-6), (step, key)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_killed_run_goes_on_bit_for_bit(
    reference: dict[str, Any], tmp_path: Path, world_size: int
) -> None:
    fsdp = {"sharding_strategy": "FULL_SHARD"} if world_size > 1 else None
    whole = reference | {"root": str(tmp_path), "name": "whole", "dropout": 0.1, "fsdp": fsdp}
    whole["microbatch"] = 2
    # Steps 6 and 7 are made, lost with the process, and made again from the checkpoint of step 5.
    killed = whole | {"name": "killed", "autoresume": True}
    run(killed | {"kill": [7, "kill"]}, world_size, expect=9)
    run([killed, whole], world_size)
    assert read(killed) == read(whole)


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_and_goes_on(
    reference: dict[str, Any], tmp_path: Path
) -> None:
    own = reference | {"root": str(tmp_path), "name": "own", "autoresume": True}
    run([own | {"kill": [8, "stop"]}, own])
    record = json.loads((tmp_path / "own" / "run.json").read_text("utf-8"))
    first, second = record["attempts"]
    assert (first["status"], first["reason"]) == ("stopped", "enough")
    assert second["status"] == "finished"
    assert (tmp_path / "own" / "checkpoints" / "step-000008" / "manifest.json").is_file()
    assert read(own) == read(reference)


@pytest.mark.slow
def test_a_sharded_run_goes_on_in_one_process(reference: dict[str, Any], tmp_path: Path) -> None:
    own = reference | {"root": str(tmp_path), "name": "own", "autoresume": True, "microbatch": 2}
    run(own | {"kill": [7, "stop"], "fsdp": {"sharding_strategy": "FULL_SHARD"}}, 2)
    run(own)
    expected, found = read(reference), read(own)
    for step, values in expected.items():
        for key, value in values.items():
            assert found[step][key] == pytest.approx(value, rel=2e-6), (step, key)


@pytest.mark.slow
def test_not_a_number_on_one_rank_ends_the_run_before_the_update(
    reference: dict[str, Any], tmp_path: Path
) -> None:
    own = reference | {"root": str(tmp_path), "name": "own", "microbatch": 4, "autoresume": True}
    poison = {"forward": 8, "rank": 1, "factor": math.nan}  # one forward a step: step 8
    told = run(own | {"poison": poison}, 2, expect=1)
    for text in told:
        assert "NonFiniteError: nan_monitor: step 8: loss nan" in text
        assert "step-000005" in text
    record = json.loads((tmp_path / "own" / "run.json").read_text("utf-8"))
    assert record["status"] == "failed"
    # Nothing of the bad step is in the weights or in the folder: the run goes on as if it had
    # not been.
    run(own, 2)
    expected, found = read(reference), read(own)
    for step, values in expected.items():
        for key, value in values.items():
            assert found[step][key] == pytest.approx(value, rel=2e-6), (step, key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "option"),
    [
        (math.inf, {"skip_nan": True}),
        (100.0, {"guard": {"window": 3, "factor": 2.0, "sigma": None}}),
    ],
    ids=["nan", "spike"],
)
def test_a_bad_step_is_left_out_on_all_ranks_alike(
    reference: dict[str, Any], tmp_path: Path, factor: float, option: dict[str, Any]
) -> None:
    own = reference | {"root": str(tmp_path), "microbatch": 4} | option
    arguments = [
        own | {"name": str(rank), "poison": {"forward": 8, "rank": rank, "factor": factor}}
        for rank in (0, 1)
    ]
    run(arguments, 2)
    runs = [read(each) for each in arguments]
    # Whose loss was bad makes no difference once the update is left out, and the run goes on
    # with other weights than one that made all updates.
    for step in range(9, 13):
        assert runs[0][step] == runs[1][step]
        assert runs[0][step]["loss/train/total"] != read(reference)[step]["loss/train/total"]
        assert math.isfinite(runs[0][step]["loss/train/total"])


def test_only_the_weights_are_taken(reference: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(reference["root"]) / "reference"
    own = reference | {
        "root": str(tmp_path),
        "name": "own",
        "load_path": str(folder),
        "load_weights_only": True,
        "eval_first": True,
        "duration": "3ba",
    }
    run(own)
    found = read(own)
    key = "metrics/eval/LanguageCrossEntropy"
    assert found[0][key] == read(reference)[12][key]  # its weights …
    assert found[1]["time/batch"] == 1.0  # … and a run of its own


@pytest.mark.slow
def test_a_whole_checkpoint_of_another_run_is_gone_on_from(
    reference: dict[str, Any], tmp_path: Path
) -> None:
    step_10 = Path(reference["root"]) / "reference" / "checkpoints" / "step-000010"
    own = reference | {"root": str(tmp_path), "name": "own", "load_path": str(step_10)}
    run(own)
    expected = read(reference)
    assert read(own) == {step: expected[step] for step in (11, 12)}


def test_a_folder_that_holds_a_run_is_refused(reference: dict[str, Any]) -> None:
    [told] = run(reference, expect=1)
    assert "already holds a run (finished" in told
    assert "autoresume: true" in told


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["bf16_fp32_masters", "bf16"])
def test_16_bit_weights_learn_alike_and_go_on_bit_for_bit(
    tokenizer: str, tmp_path: Path, weights: str
) -> None:
    """Stochastic rounding has a state too: the killed run repeats the noise of the whole one."""
    base = {
        "tokenizer": tokenizer,
        "root": str(tmp_path),
        "microbatch": 4,
        "duration": "12ba",
        "precision": "amp_bf16",
        "optimizer": "lion",
        "autoresume": True,
        "save": "3ba",
    }
    exact, whole, killed = (base | {"name": name} for name in ("exact", "whole", "killed"))
    run(killed | {"weights": weights, "kill": [7, "kill"]}, expect=9)
    run([exact, whole | {"weights": weights}, killed | {"weights": weights}])
    losses = [
        [line["loss/train/total"] for line in read(each).values() if "loss/train/total" in line]
        for each in (exact, whole, killed)
    ]
    assert losses[2] == losses[1]
    # bfloat16 has 8 bits: each loss of about 4 nats is right to a few hundredths.
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert losses[1] != losses[0]


@pytest.mark.slow
def test_the_search_for_a_microbatch_leaves_no_trace(tokenizer: str, tmp_path: Path) -> None:
    """A run whose size was found has the bits of one to which it was given, dropout included."""
    base = {"tokenizer": tokenizer, "root": str(tmp_path), "duration": "6ba", "dropout": 0.1}
    found = base | {"name": "found", "microbatch": "auto", "search": True}
    run(found)
    record = json.loads((tmp_path / "found" / "run.json").read_text("utf-8"))
    told = record["choices"]["device_train_microbatch_size"]
    assert "the fastest that fits (" in told
    run(base | {"name": "given", "microbatch": int(told.split(",")[0])})
    assert read(found) == read(base | {"name": "given"})
