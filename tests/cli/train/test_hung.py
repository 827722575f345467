"""A rank of ``foundry train`` that hangs: found, named, and nothing of the run left behind."""

from pathlib import Path

import pytest


def processes_of(folder):
    """Return the processes whose command line names ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(folder).encode() in line:
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_hung_rank_is_named_with_its_stack_and_the_run_goes_on(spec, tmp_path, foundry, losses):
    path = spec(duration="6ba", workers=1)
    shared = {entry.name for entry in Path("/dev/shm").iterdir()}  # noqa: S108
    command = ("train", path, "-n", 2, "autoresume=true", "dist_timeout=10")
    done = foundry(*command, FOUNDRY_FAULT="collective.gradients:5:hang:1")
    assert done.returncode == 77, done.stderr
    assert "error: rank 1: hung: rank(s) 0 waited " in done.stderr
    assert "in the collective 'gradients' (dist_timeout: 10)" in done.stderr
    stacks = done.stderr.partition("stacks of rank 1:")[2]
    assert "in reach" in stacks
    assert "in gradients_synchronised" in stacks
    assert processes_of(tmp_path) == []
    assert {entry.name for entry in Path("/dev/shm").iterdir()} <= shared  # noqa: S108
    run = tmp_path / "runs" / "run"
    assert max(losses(run)) == 4
    done = foundry(*command)
    assert done.returncode == 0, done.stderr
    assert sorted(losses(run)) == list(range(1, 7))
