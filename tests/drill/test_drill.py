"""``foundry drill`` itself, on real runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def foundry(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "foundry_sdk", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def shared_memory():
    return {path.name for path in Path("/dev/shm").iterdir()}  # noqa: S108


@pytest.mark.slow
def test_two_ranks_survive_faults_and_hangs(tmp_path):
    before = shared_memory()
    done = foundry("drill", "--folder", tmp_path / "d", "--only", "*.[gw]r[ai]*", "-n", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "d" / "drill.json").read_text())
    assert content["survived"] is True
    faults = {(f["fault"]["point"], f["fault"]["action"]): f for f in content["faults"]}
    assert set(faults) == {
        ("record.write", "kill"), ("record.write", "enospc"),
        ("collective.gradients", "kill"), ("collective.gradients", "eio"),
        ("collective.gradients", "hang"),
        ("checkpoint.write", "kill"), ("checkpoint.write", "enospc"),
        ("checkpoint.write", "hang"),
    }  # fmt: skip
    for (_, action), fault in faults.items():
        assert fault["verdict"] == "survived"
        assert fault["ended"] == {
            "kill": "killed by SIGKILL", "hang": "hung: ended by the launcher",
        }.get(action, fault["ended"])  # fmt: skip
    assert faults["checkpoint.write", "enospc"]["ended"] == "exit code 75"
    assert len(content["losses"]) == 8
    assert all(loss.startswith("0x") for loss in content["losses"])
    assert "| hang | checkpoint.write | 1 | same bits" in (tmp_path / "d" / "drill.md").read_text()
    assert shared_memory() - before == set()


@pytest.mark.slow
def test_a_conversion_survives_every_fault_at_every_moment(tmp_path):
    done = foundry("drill", "--folder", tmp_path / "d", "--only", "convert.*", "-n", 1, "--full")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "d" / "drill.json").read_text())
    assert content["planned"] == len(content["faults"]) == 5 * 3
    assert {fault["verdict"] for fault in content["faults"]} == {"survived"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing.yaml"], "nothing.yaml: no such file"),
        (["--folder", "."], "--folder .: is not empty"),
        (["-n", "0"], "-n"),
    ],
)
def test_what_cannot_be_drilled_is_refused(arguments, told):
    done = foundry("drill", *arguments)
    assert done.returncode in {1, 2}
    assert told in done.stderr
    assert "Traceback" not in done.stderr
