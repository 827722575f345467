"""``foundry train`` from outside: one process, several, several machines, other launchers."""

import socket
import subprocess
import sys

import pytest


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_one_process_and_two_learn_the_same(spec, tmp_path, foundry, losses):
    alone = foundry("train", spec(), "run_name=one", "model.emb_pdrop=0.0")
    assert alone.returncode == 0, alone.stderr
    both = foundry("train", spec(), "run_name=two", "model.emb_pdrop=0.0", "--nproc", 2)
    assert both.returncode == 0, both.stderr
    assert "starting 2 process(es) on the CPU: ranks 0 to 1 of 2" in both.stderr
    one, two = (losses(tmp_path / "runs" / name) for name in ("one", "two"))
    assert sorted(one) == sorted(two) == list(range(1, 10))
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_torchrun_and_two_machines_give_what_the_launcher_gives(
    *, spec, tmp_path, environment, foundry, start, losses
):
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
def test_accelerate_launch_starts_the_process_that_trains(spec, tmp_path, environment, losses):
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


def test_mistakes_are_said_once_before_anything_starts(spec, tmp_path, foundry):
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


def test_options_of_a_launcher_are_refused_inside_another_one(spec, foundry):
    done = foundry("train", spec(), "--nproc", 2, RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    assert done.returncode == 2
    assert "--nproc: this process was started by another launcher" in done.stderr
    done = foundry("train", spec(), "--stdout", "x-{rank}")
    assert done.returncode == 2
    assert "--stdout: is for the output of other ranks" in done.stderr


@pytest.mark.slow
def test_an_error_of_all_workers_is_printed_once_with_a_rank(spec, foundry):
    done = foundry("train", spec(), "--nproc", 2, "model.vocab_size=40")
    assert done.returncode == 2
    assert done.stderr.count("40 is smaller than the tokenizer's 64 tokens") >= 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: rank ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    told = foundry("train", spec(), "--debug", "--nproc", 2, "model.vocab_size=40")
    assert "Traceback" in told.stderr


def test_data_that_is_missing_is_said_before_processes_are_started(spec, tmp_path, foundry):
    done = foundry("train", spec(), "--nproc", 2, f"train_loader.dataset.local={tmp_path}/nowhere")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: train_loader: {tmp_path}/nowhere")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(spec, tmp_path, foundry, losses):
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
def test_of_two_starts_of_one_run_the_second_is_refused(spec, tmp_path, start, losses):
    path = spec(duration="300ba")
    pair = [start("train", path, "autoresume=true") for _ in range(2)]
    said = [process.communicate(timeout=200)[1] for process in pair]
    codes = [process.returncode for process in pair]
    assert sorted(codes) == [0, 2], said
    refused = said[codes.index(2)]
    assert f"process {pair[codes.index(0)].pid} on host" in refused
    assert "Traceback" not in refused
    assert sorted(losses(tmp_path / "runs" / "run")) == list(range(1, 301))
