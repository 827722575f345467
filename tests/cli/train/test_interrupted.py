"""``foundry train`` stopped, killed, or out of room: the run goes on as if nothing had been."""

import os
import random
import signal
import time
from pathlib import Path

import pytest


def wait_for_step(losses, run, step, process, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if (run / "metrics.jsonl").exists() and max(losses(run), default=0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in children.read_text().split()] if children.exists() else []
    return [*found, *(deeper for child in found for deeper in descendants(child))]


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_sigterm_saves_and_exits_143_and_the_run_goes_on(
    *, spec, tmp_path, nproc, foundry, start, losses
):
    path = spec(duration="600ba")
    run = tmp_path / "runs" / "run"
    process = start("train", path, "-n", nproc, "save_interval=1000ba")
    wait_for_step(losses, run, 5, process)
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
def test_sigterm_at_any_moment_ends_with_143_and_loses_no_step(spec, tmp_path, start, losses):
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


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "rank 0", "rank 1"])
def test_killed_at_random_moments_the_loss_curve_is_the_uninterrupted_one(
    *, spec, tmp_path, victim, foundry, start, losses
):
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
def test_a_full_disk_ends_with_75_and_the_run_goes_on_once_there_is_room(
    spec, tmp_path, foundry, losses
):
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
def test_killed_inside_of_saves_the_loss_curve_is_the_uninterrupted_one(
    spec, tmp_path, foundry, losses
):
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
