"""``foundry train`` from outside: a tiny MPT on converted text, as processes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

CLEAN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR")

SPEC = """
run_name: run
run_root: {folder}/runs
max_seq_len: 16
model:
  name: mpt_causal_lm
  d_model: 16
  n_heads: 2
  n_layers: 2
  max_seq_len: 16
  vocab_size: 64
  attn_config: {{attn_impl: torch}}
  emb_pdrop: 0.1
loss: {{name: torch_crossentropy}}
tokenizer: {{name: {folder}/tokenizer}}
train_loader:
  name: text
  dataset:
    local: {folder}/data
    split: train
    shuffle: true
    shuffle_seed: 1
    max_seq_len: 16
  drop_last: true
  num_workers: {workers}
optimizer: {{name: decoupled_adamw, lr: 0.01}}
scheduler: {{name: cosine_with_warmup, t_warmup: 2ba}}
max_duration: {duration}
eval_interval: 1000ba
save_interval: 3ba
save_num_checkpoints_to_keep: 2
global_train_batch_size: 8
device_train_microbatch_size: 4
precision: fp32
progress_bar: false
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A tokenizer of 64 words and 200 samples of 16 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("material")
    vocabulary = {f"w{i}": i for i in range(63)} | {"<eos>": 63}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(
        folder / "tokenizer"
    )
    generator = random.Random(0)  # noqa: S311
    with (folder / "docs.jsonl").open("w") as file:
        for _ in range(64):
            words = (f"w{min(62, int(generator.expovariate(0.1)))}" for _ in range(50))
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    convert = ("data", "convert", "json", "--path", folder / "docs.jsonl", "--out-root")
    form = ("--concat-tokens", 16, "--tokenizer", folder / "tokenizer", "--eos-text", "<eos>")
    done = foundry(*convert, folder / "data", *form)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def spec(material, tmp_path):
    """Return a function that writes the spec with a run folder of its own."""

    def write(duration="9ba", workers=0):
        for name in ("tokenizer", "data"):
            if not (tmp_path / name).exists():
                (tmp_path / name).symlink_to(material / name)
        text = SPEC.format(folder=tmp_path, duration=duration, workers=workers)
        path = tmp_path / "spec.yaml"
        path.write_text(text)
        return path

    return write


def environment(**extra):
    kept = {name: value for name, value in os.environ.items() if name not in CLEAN}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | extra


def foundry(*arguments, **extra):
    return subprocess.run(
        [sys.executable, "-m", "foundry_sdk", *map(str, arguments)],
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def start(*arguments, **extra):
    return subprocess.Popen(
        [sys.executable, "-m", "foundry_sdk", *map(str, arguments)],
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(run):
    """Return each logged loss by step, exactly as written."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "loss/train/total" in values:
            assert values["step"] not in found
            found[values["step"]] = values["loss/train/total"]
    return found


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_one_process_and_two_learn_the_same(spec, tmp_path):
    alone = foundry("train", spec(), "run_name=one", "model.emb_pdrop=0.0")
    assert alone.returncode == 0, alone.stderr
    both = foundry("train", spec(), "run_name=two", "model.emb_pdrop=0.0", "--nproc", 2)
    assert both.returncode == 0, both.stderr
    assert "starting 2 process(es) on the CPU: ranks 0 to 1 of 2" in both.stderr
    one, two = (losses(tmp_path / "runs" / name) for name in ("one", "two"))
    assert sorted(one) == sorted(two) == list(range(1, 10))
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_torchrun_and_two_machines_give_what_the_launcher_gives(spec, tmp_path):
    path = spec(duration="4ba")
    assert foundry("train", path, "run_name=ours", "-n", 2).returncode == 0
    by_torchrun = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-port",
            str(free_port()),
            "-m",
            "foundry_sdk",
            "train",
            str(path),
            "run_name=torchrun",
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert by_torchrun.returncode == 0, by_torchrun.stderr
    port = free_port()
    where = ("--world_size", 2, "--nproc", 1, "--master_addr", "127.0.0.1", "--master_port", port)
    second = start("train", path, "run_name=nodes", *where, "--node_rank", 1)
    first = start(
        "train",
        path,
        "run_name=nodes",
        NODE_RANK="0",
        LOCAL_WORLD_SIZE="1",
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    for node in (first, second):
        _, said = node.communicate(timeout=300)
        assert node.returncode == 0, said
    expected = losses(tmp_path / "runs" / "ours")
    assert len(expected) == 4
    for name in ("torchrun", "nodes"):
        assert losses(tmp_path / "runs" / name) == expected


@pytest.mark.slow
def test_accelerate_launch_starts_the_process_that_trains(spec, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"),
            *("-m", "foundry_sdk", "train", str(spec(duration="2ba"))),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "runs" / "run")) == 2
    assert "started by accelerate launch as the only process" in done.stderr


def test_mistakes_are_said_once_before_anything_starts(spec, tmp_path):
    done = foundry("train", spec(), "--nproc", 2, "optimizer.lr=fast", "model.d_modell=3")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert sum("expected a number, got 'fast'" in line for line in lines) == 1
    assert sum("did you mean 'd_model'" in line for line in lines) == 1
    done = foundry("train", spec(), "--nproc", 3)
    assert done.returncode == 2
    assert "global_train_batch_size: 8 is not divisible by the world size 3" in done.stderr
    done = foundry("train", spec(), "--world-size", 4)
    assert done.returncode == 2
    assert "--node-rank" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_options_of_a_launcher_are_refused_inside_another_one(spec):
    done = foundry("train", spec(), "--nproc", 2, RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    assert done.returncode == 2
    assert "--nproc: this process was started by another launcher" in done.stderr
    done = foundry("train", spec(), "--stdout", "x-{rank}")
    assert done.returncode == 2
    assert "--stdout: is for the output of other ranks" in done.stderr


@pytest.mark.slow
def test_an_error_of_all_workers_is_printed_once_with_a_rank(spec, tmp_path):
    done = foundry("train", spec(), "--nproc", 2, f"train_loader.dataset.local={tmp_path}/nowhere")
    assert done.returncode == 2
    assert done.stderr.count("nowhere") >= 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: rank ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    told = foundry(
        "train", spec(), "--debug", "--nproc", 2, f"train_loader.dataset.local={tmp_path}/nowhere"
    )
    assert "Traceback" in told.stderr


def wait_for_step(run, step, process, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if (run / "metrics.jsonl").exists() and max(losses(run), default=0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_sigterm_saves_and_exits_143_and_the_run_goes_on(spec, tmp_path, nproc):
    path = spec(duration="600ba")
    run = tmp_path / "runs" / "run"
    process = start("train", path, "-n", nproc, "save_interval=1000ba")
    wait_for_step(run, 5, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    (step,) = (int(p.name.removeprefix("step-")) for p in (run / "checkpoints").glob("step-*"))
    assert step >= 5
    assert max(losses(run)) == step
    done = foundry(
        "train",
        path,
        "-n",
        nproc,
        "autoresume=true",
        f"max_duration={step + 3}ba",
        "save_interval=1000ba",
    )
    assert done.returncode == 0, done.stderr
    assert sorted(losses(run)) == list(range(1, step + 4))


@pytest.mark.slow
def test_sigterm_at_any_moment_ends_with_143_and_loses_no_step(spec, tmp_path):
    path = spec(duration="20000ba")
    run = tmp_path / "runs" / "run"
    generator = random.Random(5)  # noqa: S311
    before = 0
    for _ in range(8):
        process = start("train", path, "-n", 2, "autoresume=true", "save_interval=50ba")
        time.sleep(generator.uniform(0.2, 14.0))
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 143, said
        if (run / "metrics.jsonl").exists():
            last = max(losses(run), default=0)
            assert last >= before
            before = last
    found = sorted((run / "checkpoints").glob("step-*"))
    assert found
    assert int(found[-1].name.removeprefix("step-")) == before


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in children.read_text().split()] if children.exists() else []
    return [*found, *(deeper for child in found for deeper in descendants(child))]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "rank 0", "rank 1"])
def test_killed_at_random_moments_the_loss_curve_is_the_uninterrupted_one(spec, tmp_path, victim):
    path = spec(duration="60ba")
    oracle = foundry("train", path, "-n", 2, "run_name=oracle")
    assert oracle.returncode == 0, oracle.stderr
    expected = losses(tmp_path / "runs" / "oracle")
    assert sorted(expected) == list(range(1, 61))
    run = tmp_path / "runs" / "run"
    generator = random.Random(victim)  # noqa: S311
    kills = 0
    for _ in range(20):
        process = start("train", path, "-n", 2, "autoresume=true")
        reached = max(losses(run), default=0) if (run / "metrics.jsonl").exists() else 0
        target = reached + generator.randint(1, 15)
        while process.poll() is None:
            now = max(losses(run), default=0) if (run / "metrics.jsonl").exists() else 0
            if now >= target:
                time.sleep(generator.uniform(0, 0.05))
                workers = descendants(process.pid)
                chosen = {"launcher": process.pid}
                if len(workers) >= 2:
                    chosen |= {"rank 0": workers[0], "rank 1": workers[1]}
                if victim in chosen and process.poll() is None:
                    os.kill(chosen[victim], signal.SIGKILL)
                    kills += 1
                break
            time.sleep(0.005)
        process.communicate(timeout=120)
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 3
    assert losses(run) == expected


@pytest.mark.slow
def test_a_full_disk_ends_with_75_and_the_run_goes_on_once_there_is_room(spec, tmp_path):
    path = spec()
    assert foundry("train", path, "run_name=oracle").returncode == 0
    full = foundry("train", path, FOUNDRY_FAULT="checkpoint.write:12:enospc")
    assert full.returncode == 75
    assert "no space left" in full.stderr
    assert "Traceback" not in full.stderr
    checkpoints = tmp_path / "runs" / "run" / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir() if p.is_dir()) == ["step-000003"]
    done = foundry("train", path, "autoresume=true")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "runs" / "run") == losses(tmp_path / "runs" / "oracle")


@pytest.mark.slow
def test_killed_inside_of_saves_the_loss_curve_is_the_uninterrupted_one(spec, tmp_path):
    path = spec(duration="30ba")
    assert foundry("train", path, "-n", 2, "run_name=oracle").returncode == 0
    run = tmp_path / "runs" / "run"
    for nth in range(1, 62, 9):
        fault = f"checkpoint.*:{nth}:kill"
        killed = foundry("train", path, "-n", 2, "autoresume=true", FOUNDRY_FAULT=fault)
        assert killed.returncode == 128 + signal.SIGKILL, killed.stderr
        assert "was killed by SIGKILL" in killed.stderr
    done = foundry("train", path, "-n", 2, "autoresume=true")
    assert done.returncode == 0, done.stderr
    assert losses(run) == losses(tmp_path / "runs" / "oracle")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(spec, tmp_path):
    path = spec()
    same = ("model.emb_pdrop=0.0", "scheduler.name=constant_with_warmup")
    assert foundry("train", path, *same, "run_name=oracle").returncode == 0
    for nproc, steps in ((1, 3), (2, 6), (1, 9)):
        done = foundry(
            "train", path, *same, "-n", nproc, "autoresume=true", f"max_duration={steps}ba"
        )
        assert done.returncode == 0, done.stderr
    found = losses(tmp_path / "runs" / "run")
    expected = losses(tmp_path / "runs" / "oracle")
    assert sorted(found) == list(range(1, 10))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_of_two_starts_of_one_run_the_second_is_refused(spec, tmp_path):
    path = spec(duration="300ba")
    pair = [start("train", path, "autoresume=true") for _ in range(2)]
    said = [process.communicate(timeout=200)[1] for process in pair]
    codes = [process.returncode for process in pair]
    assert sorted(codes) == [0, 2], said
    refused = said[codes.index(2)]
    assert f"process {pair[codes.index(0)].pid} on host" in refused
    assert "Traceback" not in refused
    assert sorted(losses(tmp_path / "runs" / "run")) == list(range(1, 301))
