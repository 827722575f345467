"""A run that cannot go on from what is there, or where it is: one message, exit code 2.

A full disk is in ``tests/checkpoint/test_store.py`` and ``tests/cli/train``, a port that is in use
in ``tests/launch/test_topology.py``.
"""

import json
import os
import socket
import subprocess
import sys

import pytest

from foundry_sdk.runs.record import RUN_FILE


@pytest.fixture
def trained(foundry, material):
    """Return the spec of a run that made a checkpoint at steps 2 and 4."""
    path = material.pretrain()
    done = foundry("train", path, "save_interval=2ba")
    assert done.code == 0, done.err
    return path


RESUME = ("autoresume=true", "max_duration=6ba")
CHANGED = {
    "another width of the model": (
        ("model.d_model=32",),
        "attn.Wqkv.weight: [48, 16] in the checkpoint, [96, 32] here",
    ),
    "another optimizer": (
        ("optimizer={name: decoupled_lionw, lr: 1e-4, betas: [0.9, 0.99]}",),
        "optimizer",
    ),
    "another seed": (("seed=3",), "seed: 17 then, 3 now"),
    "another batch": (("global_train_batch_size=2",), "global_train_batch_size: 4 then, 2 now"),
    "another order of the data": (("train_loader.dataset.shuffle_seed=5",), "shuffle_seed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CHANGED)
def test_a_run_does_not_go_on_as_another_one(case, foundry, trained):
    words, message = CHANGED[case]
    done = foundry("train", trained, *RESUME, *words)
    assert done.code == 2
    assert 1 <= len(done.lines) <= 5
    assert message in done.err
    assert "Traceback" not in done.err
    again = foundry("train", trained, *RESUME)
    assert again.code == 0, again.err


def test_with_damaged_checkpoints_only_each_is_named_with_its_reason(foundry, trained, material):
    folders = sorted((material.folder / "runs/run/checkpoints").glob("step-*"))
    assert len(folders) == 2
    for folder in folders:
        weights = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    done = foundry("train", trained, *RESUME)
    assert done.code == 2
    assert 1 <= len(done.lines) <= 5
    for folder in folders:
        assert folder.name in done.err
    assert done.err.count("damaged: its SHA-256 is not that of the manifest") == 2


def test_a_folder_without_checkpoints_is_named(foundry, material):
    (material.folder / "empty").mkdir()
    done = foundry("train", material.pretrain(), "load_path=empty")
    assert (done.code, len(done.lines)) == (2, 1)
    assert "empty" in done.err


def test_a_run_that_is_there_is_not_overwritten(foundry, trained):
    done = foundry("train", trained)
    assert (done.code, len(done.lines)) == (2, 1)
    assert "autoresume: true" in done.err


def test_a_record_of_a_newer_release_is_not_touched(foundry, trained, material):
    record = material.folder / "runs/run" / RUN_FILE
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "schema": 99}))
    done = foundry("train", trained, *RESUME)
    assert (done.code, len(done.lines)) == (2, 1)
    assert "schema 1, got 99" in done.err


PLACES = {
    "a root that cannot be made": "run_root=/proc/runs",
    "a root that is a file": "run_root=run.yaml",
    "checkpoints in a file": "save_folder=run.yaml",
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("case", PLACES)
def test_a_place_that_cannot_be_written(case, foundry, material):
    done = foundry("train", material.pretrain(), PLACES[case])
    assert (done.code, len(done.lines)) == (2, 1)
    assert PLACES[case].partition("=")[2] in done.err


@pytest.mark.usefixtures("no_model")
@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write(foundry, material):
    locked = material.folder / "locked"
    locked.mkdir(mode=0o500)
    done = foundry("train", material.pretrain(), f"run_root={locked}")
    assert (done.code, len(done.lines)) == (2, 1)
    assert str(locked) in done.err


HOLD = """
import pathlib
import sys
from foundry_sdk.lock import FolderLock
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
lock = FolderLock.take(folder / "run.lock")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("no_model")
def test_a_run_that_another_process_is_at_is_named_with_it(foundry, material):
    folder = material.folder / "runs/run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        done = foundry("train", material.pretrain())
        holder.communicate()
    assert (done.code, len(done.lines)) == (2, 1)
    assert f"process {holder.pid} on host {os.uname().nodename}" in done.err


@pytest.mark.usefixtures("no_run")
def test_a_port_that_is_in_use(foundry, material):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        done = foundry("train", material.pretrain(), "-n", 2, "--master-port", port)
    assert (done.code, len(done.lines)) == (2, 1)
    assert f"--master-port {port}: Address already in use" in done.err


NOTHING_THERE = {
    "train": (["train", "no.yaml"], "no.yaml: no such file (looked from "),
    "check": (["check", "no.yaml"], "no.yaml: no such file (looked from "),
    "plan": (["plan", "no.yaml"], "no.yaml: no such file (looked from "),
    "data check": (["data", "check", "no.yaml"], "no.yaml: no such file (looked from "),
    "data inspect": (["data", "inspect", "no"], "no: there is no such folder"),
    "runs": (["runs", "no"], "no is no folder of runs"),
    "report": (["report", "no"], "no run 'no', neither as a folder nor under runs"),
    "diff": (["diff", "no", "other"], "no run 'no', neither as a folder nor under runs"),
    "chat": (["chat", "no"], "no: no such file or folder"),
    "generate": (["generate", "no", "--prompt", "x"], "no: no such file or folder"),
    "export": (["export", "no", "out"], "no: no such file or folder"),
    "data convert json": (
        ["data", "convert", "json", "--path", "no", "--out-root", "out"],
        "path: there is no file, folder or match of 'no'",
    ),
    "plugins": (["plugins", "--family", "no"], "no component family is named 'no'; known: "),
}


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize("command", NOTHING_THERE)
def test_what_is_not_there_is_named(command, foundry):
    words, message = NOTHING_THERE[command]
    done = foundry(*words)
    assert (done.code, len(done.lines)) == (2, 1)
    assert message in done.err


RANKS = {
    "a rank that is not below the world size": (
        {"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        "RANK=3 is not below WORLD_SIZE=2",
    ),
    "a rank that is no number": (
        {"RANK": "first", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        "RANK='first': expected a whole number",
    ),
    "ranks without a place to meet": (
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        "MASTER_ADDR, MASTER_PORT not set; start with 'foundry train'",
    ),
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("case", RANKS)
def test_an_environment_that_no_launcher_makes(case, foundry, material, monkeypatch):
    variables, message = RANKS[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = foundry("train", material.pretrain())
    assert (done.code, len(done.lines)) == (2, 1)
    assert message in done.err


@pytest.mark.usefixtures("no_model")
def test_half_precision_that_a_processor_does_not_have(foundry, material, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = foundry("train", material.pretrain(), "precision=amp_fp16")
    assert (done.code, len(done.lines)) == (2, 1)
    assert "precision: amp_fp16 needs a GPU; on a CPU use fp32 or amp_bf16" in done.err
