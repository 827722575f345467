"""A rank that hangs is found, named with its stack, and ended with all others."""

import signal
import sys
import time
from pathlib import Path

import pytest

from foundry_sdk.data.shared_memory import SHARED_MEMORY
from foundry_sdk.launch.launcher import launch
from foundry_sdk.launch.pulse import Pulse, read_beat
from foundry_sdk.launch.topology import LaunchOptions, resolve_topology
from foundry_sdk.launch.watchdog import HUNG_EXIT

# Ranks that meet through files, so that no torch is loaded: each "collective" waits for the peers'
# files, as gloo waits for their messages.
RANK = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from foundry_sdk.launch.pulse import Pulse

folder = Path(r"{folder}")
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
pulse = Pulse.begin(os.environ, {until_all_began})
(folder / f"pid-{{rank}}").write_text(str(os.getpid()))

def meet(number):
    with pulse.within(f"meeting {{number}}"):
        (folder / f"met-{{number}}-{{rank}}").touch()
        while len(list(folder.glob(f"met-{{number}}-*"))) < size:
            time.sleep(0.005)

meet("start")
pulse = Pulse.begin(os.environ, {timeout})
{body}
"""


def run(script, nproc=2):
    given = LaunchOptions(nproc=nproc)
    topology = resolve_topology(given, {}, devices=0)
    return launch([sys.executable, "-c", script], topology, given)


def assert_all_ended(folder, count):
    pids = [int(path.read_text()) for path in folder.glob("pid-*")]
    assert len(pids) == count
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hang(tmp_path, body, *, nproc=2, timeout=1.5):
    script = RANK.format(folder=tmp_path, timeout=timeout, until_all_began=60, body=body)
    return run(script, nproc=nproc)


@pytest.mark.parametrize("late", [0, 2])
def test_the_late_rank_is_named_with_its_stack_and_all_end(tmp_path, late):
    body = f"""
def read_a_batch():
    time.sleep(600)

meet(1)
if rank == {late}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "300"])
    (folder / "pid-child").write_text(str(child.pid))
    read_a_batch()
meet(2)
"""
    result = hang(tmp_path, body, nproc=3)
    assert (result.exit_code, result.rank) == (HUNG_EXIT, late)
    others = ", ".join(str(rank) for rank in range(3) if rank != late)
    assert result.message.startswith(f"rank {late}: hung: rank(s) {others} waited ")
    assert "in the collective 'meeting 2' (dist_timeout: 1.5)" in result.message
    _, stacks = result.message.split(f"stacks of rank {late}:\n")
    assert "in read_a_batch" in stacks
    assert "in meet" not in stacks
    assert_all_ended(tmp_path, 4)


def test_a_stopped_rank_is_found(tmp_path):
    result = hang(tmp_path, "meet(1)\nif rank: os.kill(os.getpid(), signal.SIGSTOP)\nmeet(2)")
    assert (result.exit_code, result.rank) == (HUNG_EXIT, 1)
    assert "line" in result.message.split("stacks of rank 1:\n")[1]
    assert_all_ended(tmp_path, 2)


def test_a_rank_that_never_begins_is_found(tmp_path):
    script = RANK.format(folder=tmp_path, timeout=60, until_all_began=1.0, body="")
    script = "import os, time\nif os.environ['RANK'] == '1': time.sleep(600)\n" + script
    result = run(script)
    assert (result.exit_code, result.rank) == (HUNG_EXIT, 1)
    assert result.message.endswith("stacks of rank 1:\n(it has not begun, or gave none)")


def test_the_rank_that_gives_up_waiting_is_not_the_cause(tmp_path):
    """As where a collective's own timeout is over before the watch has looked."""
    body = """
if rank == 1:
    time.sleep(600)
with pulse.within("meeting"):
    while time.monotonic() < began + 1.47:
        pass
    raise RuntimeError("timed out")
"""
    result = hang(tmp_path, "began = time.monotonic()\n" + body)
    assert (result.exit_code, result.rank) == (HUNG_EXIT, 1)


def test_ranks_that_all_wait_in_one_place_accuse_nobody(tmp_path):
    result = hang(tmp_path, "with pulse.within('all-reduce'):\n    time.sleep(600)")
    assert (result.exit_code, result.rank) == (HUNG_EXIT, None)
    assert result.message.startswith("hung: rank(s) 0, 1 waited ")
    assert "no rank of this machine is behind" in result.message
    assert "stacks of rank 1:" in result.message


def test_a_rank_that_does_not_end_when_others_have_is_found(tmp_path):
    body = "def write_the_end():\n    time.sleep(600)\nmeet(1)\nif rank: write_the_end()"
    result = hang(tmp_path, body)
    assert (result.exit_code, result.rank) == (HUNG_EXIT, 1)
    assert result.message.startswith("rank 1: hung: rank(s) 0 ended ")
    assert "in write_the_end" in result.message
    assert_all_ended(tmp_path, 2)


def test_long_work_outside_of_collectives_is_no_hang(tmp_path):
    body = "meet(1)\ntime.sleep(1.2)\nmeet(2)"
    assert hang(tmp_path, body, nproc=1, timeout=0.2).exit_code == 0


def test_an_error_in_a_collective_that_is_overcome_leaves_the_count_right(tmp_path):
    pulse = Pulse(tmp_path / "pulse", 5.0)
    with pytest.raises(ValueError, match="once"), pulse.within("gradients"):
        raise ValueError("once")
    assert read_beat(tmp_path / "pulse").waits
    with pulse.within("sum"):
        assert (read_beat(tmp_path / "pulse").count, read_beat(tmp_path / "pulse").waits) == (
            3,
            True,
        )
    beat = read_beat(tmp_path / "pulse")
    assert (beat.count, beat.waits, beat.timeout, beat.inside) == (4, False, 5.0, "sum")
    assert time.monotonic() - beat.at < 60


def test_shared_memory_of_a_killed_rank_goes_with_it(tmp_path):
    body = """
from foundry_sdk.data.shared_memory import SHARED_MEMORY, new_prefix, owner
prefix = new_prefix()
(SHARED_MEMORY / f"{prefix}_locals").write_bytes(owner())
(SHARED_MEMORY / f"{prefix}_barrier").touch()
(folder / f"prefix-{rank}").write_text(str(prefix))
meet(1)
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""
    result = hang(tmp_path, body)
    assert result.exit_code == 128 + signal.SIGKILL
    for rank in range(2):
        prefix = (tmp_path / f"prefix-{rank}").read_text()
        assert not list(SHARED_MEMORY.glob(f"{prefix}_*"))
