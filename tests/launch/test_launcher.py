import os
import signal
import subprocess
import sys
import time

import pytest

from foundry_sdk.errors import LaunchError
from foundry_sdk.launch.launcher import launch
from foundry_sdk.launch.topology import LaunchOptions, resolve_topology


def run(script, nproc=2, **options):
    given = LaunchOptions(nproc=nproc, **options)
    topology = resolve_topology(given, {}, devices=0)
    return launch([sys.executable, "-c", script], topology, given)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


def gone(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def wait_for(folder, count, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pids = [path.read_text() for path in folder.glob("pid-*")]
        if len(pids) == count and all(pids):
            return [int(pid) for pid in pids]
        time.sleep(0.02)
    raise AssertionError(f"{count} processes did not start")


def test_each_process_knows_its_place(tmp_path):
    script = f"""
import os
names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK MASTER_ADDR PYTHONUNBUFFERED"
with open(r"{tmp_path}/" + os.environ["RANK"], "w") as file:
    file.write(" ".join(os.environ[name] for name in names.split()))
"""
    assert run(script, nproc=3).exit_code == 0
    for rank in range(3):
        assert (tmp_path / str(rank)).read_text() == f"{rank} 3 {rank} 3 0 127.0.0.1 1"


def test_only_rank_0_is_shown_and_others_go_to_files_if_asked(tmp_path, capfd):
    script = """
import os, sys
print("out", os.environ["RANK"])
print("err", os.environ["RANK"], file=sys.stderr)
"""
    run(script)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("out 0\n", "err 0\n")
    run(script, nproc=3, stdout=f"{tmp_path}/a/out-{{rank}}.txt", stderr=f"{tmp_path}/err-{{rank}}")
    capfd.readouterr()
    for rank in (1, 2):
        assert (tmp_path / "a" / f"out-{rank}.txt").read_text() == f"out {rank}\n"
        assert (tmp_path / f"err-{rank}").read_text() == f"err {rank}\n"
    assert not (tmp_path / "a" / "out-0.txt").exists()


@pytest.mark.parametrize("pattern", ["{nonsense}", "{", "{0}"])
def test_a_bad_pattern_is_refused(pattern):
    with pytest.raises(LaunchError, match="placeholders are"):
        run("pass", stdout=pattern)


def test_both_outputs_may_go_to_one_file_but_two_ranks_may_not(tmp_path, capfd):
    script = """
import os, sys
print("out", os.environ["RANK"])
print("err", os.environ["RANK"], file=sys.stderr)
"""
    name = f"{tmp_path}/{{rank}}.txt"
    run(script, nproc=3, stdout=name, stderr=name)
    for rank in (1, 2):
        assert (tmp_path / f"{rank}.txt").read_text() == f"out {rank}\nerr {rank}\n"
    capfd.readouterr()
    with pytest.raises(LaunchError, match=r"put \{rank\} into its name"):
        run(script, nproc=3, stderr=f"{tmp_path}/all.txt")
    assert capfd.readouterr().out == ""


def test_one_of_two_outputs_in_a_file_leaves_the_other_for_messages(tmp_path):
    script = "import os, sys; print('said', file=sys.stderr); sys.exit(int(os.environ['RANK']))"
    result = run(script, stdout=f"{tmp_path}/out")
    assert result.message == "rank 1: ended with exit code 1; its last lines:\nsaid"
    assert (tmp_path / "out").read_text() == ""


def test_the_first_failure_s_code_rank_and_last_lines_are_returned():
    result = run(
        """
import os, sys, time
if os.environ["RANK"] == "1":
    print("the reason", file=sys.stderr)
    sys.exit(7)
time.sleep(60)
"""
    )
    assert (result.exit_code, result.rank) == (7, 1)
    assert result.message == "rank 1: ended with exit code 7; its last lines:\nthe reason"


def test_the_earliest_that_said_why_is_the_cause():
    result = run(
        """
import os, sys, time
from pathlib import Path
from foundry_sdk.errors import RunError
from foundry_sdk.launch.cause import VARIABLE, write_cause
rank = int(os.environ["RANK"])
told = [Path(os.environ[VARIABLE]).parent / f"told-{each}" for each in (0, 1)]

def wait_for(path):
    while not path.exists():
        time.sleep(0.01)

if rank == 0:
    wait_for(told[1])
write_cause(RunError(f"broken on {rank}"), os.environ)
told[rank].touch()
if rank == 1:  # it has said why first, and ends last
    wait_for(told[0])
    time.sleep(0.2)
sys.exit(3)
"""
    )
    assert (result.exit_code, result.rank, result.message) == (3, 1, "rank 1: broken on 1")


def test_an_unforeseen_error_comes_with_its_traceback():
    result = run(
        """
import os, sys
from foundry_sdk.launch.cause import write_cause
try:
    1 / 0
except ZeroDivisionError as error:
    write_cause(error, os.environ)
    sys.exit(1)
""",
        nproc=1,
    )
    assert "ZeroDivisionError" in result.message
    assert 'File "<string>", line 5' in result.message


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_the_cause_not_the_peer_that_noticed(victim):
    result = run(
        f"""
import os, signal, sys, time
import torch, torch.distributed as dist
from foundry_sdk.launch.cause import write_cause
dist.init_process_group("gloo")
if dist.get_rank() == {victim}:
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
try:
    dist.barrier()
except RuntimeError as error:
    write_cause(error, os.environ)
    sys.exit(1)
"""
    )
    assert result.rank == victim
    assert result.exit_code == 128 + signal.SIGKILL
    assert "was killed by SIGKILL" in result.message


@pytest.mark.slow
def test_when_one_dies_all_end_also_those_that_ignore_sigterm_and_their_children(tmp_path):
    result = run(
        f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def note(name, pid):
    with open(r"{tmp_path}/pid-" + name, "w") as file:
        file.write(str(pid))
rank = os.environ["RANK"]
note(rank, os.getpid())
child = subprocess.Popen(["sleep", "300"])
note(rank + "-child", child.pid)
while len(os.listdir(r"{tmp_path}")) < 4:
    time.sleep(0.01)
time.sleep(0.2)
if rank == "1":
    os._exit(9)
time.sleep(300)
"""
    )
    assert result.exit_code == 9
    for pid in wait_for(tmp_path, 4):
        assert gone(pid)


LAUNCHER = """
import sys
from foundry_sdk.launch.launcher import launch
from foundry_sdk.launch.topology import LaunchOptions, resolve_topology
options = LaunchOptions(nproc=2)
topology = resolve_topology(options, {{}}, devices=0)
result = launch([sys.executable, "-c", {script!r}], topology, options)
print(result.message)
sys.exit(result.exit_code)
"""


def start(script):
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER.format(script=script)], stdout=subprocess.PIPE, text=True
    )


NOTE = """
import os, signal, sys, time
def note():
    path = r"{folder}/pid-" + os.environ["RANK"]
    with open(path + "~", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + "~", path)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_every_worker_and_gives_the_exit_code(tmp_path, number):
    script = (
        NOTE.format(folder=tmp_path)
        + f"""
from foundry_sdk.training.signals import StopRequest
with StopRequest() as stop:
    note()
    while not stop.requested:
        time.sleep(0.01)
time.sleep(0.5 * (os.environ["RANK"] == "0"))
open(r"{tmp_path}/saved-" + os.environ["RANK"], "w").close()
sys.exit(128 + stop.number)
"""
    )
    process = start(script)
    wait_for(tmp_path, 2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == "None\n"
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]


def test_one_worker_told_to_stop_lets_the_others_finish(tmp_path):
    script = (
        NOTE.format(folder=tmp_path)
        + f"""
note()
if os.environ["RANK"] == "1":
    sys.exit(143)
time.sleep(1.0)
open(r"{tmp_path}/saved", "w").close()
sys.exit(143)
"""
    )
    process = start(script)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (tmp_path / "saved").exists()


def test_a_second_signal_kills_at_once(tmp_path):
    script = NOTE.format(folder=tmp_path) + (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote()\ntime.sleep(300)\n"
    )
    process = start(script)
    pids = wait_for(tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    for pid in pids:
        assert gone(pid)


def test_a_killed_launcher_leaves_no_worker(tmp_path):
    script = NOTE.format(folder=tmp_path) + "note()\ntime.sleep(300)\n"
    process = start(script)
    pids = wait_for(tmp_path, 2)
    process.kill()
    process.wait()
    process.stdout.close()
    for pid in pids:
        assert gone(pid)


def test_a_failure_while_stopping_is_reported(tmp_path):
    script = (
        NOTE.format(folder=tmp_path)
        + """
from foundry_sdk.errors import CheckpointWriteError
from foundry_sdk.launch.cause import write_cause
from foundry_sdk.training.signals import StopRequest
with StopRequest() as stop:
    note()
    while not stop.requested:
        time.sleep(0.01)
    write_cause(CheckpointWriteError("no room"), os.environ)
    sys.exit(75)
"""
    )
    process = start(script)
    wait_for(tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert out in {"rank 0: no room\n", "rank 1: no room\n"}


SUM = """
import os
import torch, torch.distributed as dist
dist.init_process_group("gloo")
value = torch.tensor([2.0 ** dist.get_rank()])
dist.all_reduce(value)
with open(r"{folder}/sum-" + os.environ["RANK"], "w") as file:
    file.write(f"{{value.item()}} {{os.environ['NODE_RANK']}} {{os.environ['LOCAL_RANK']}}")
dist.destroy_process_group()
"""


def test_two_processes_meet(tmp_path):
    assert run(SUM.format(folder=tmp_path)).exit_code == 0
    assert (tmp_path / "sum-0").read_text() == "3.0 0 0"
    assert (tmp_path / "sum-1").read_text() == "3.0 0 1"


def test_two_launchers_stand_for_two_machines(tmp_path):
    port = resolve_topology(LaunchOptions(), {}, devices=0).master_port
    script = f"""
import sys
from foundry_sdk.launch.launcher import launch
from foundry_sdk.launch.topology import LaunchOptions, resolve_topology
options = LaunchOptions(
    nproc=1, world_size=2, node_rank=int(sys.argv[1]), master_addr="127.0.0.1", master_port={port}
)
command = [sys.executable, "-c", {SUM.format(folder=tmp_path)!r}]
sys.exit(launch(command, resolve_topology(options, {{}}, devices=0), options).exit_code)
"""
    nodes = [subprocess.Popen([sys.executable, "-c", script, str(node)]) for node in (1, 0)]
    assert [node.wait(120) for node in nodes] == [0, 0]
    assert (tmp_path / "sum-0").read_text() == "3.0 0 0"
    assert (tmp_path / "sum-1").read_text() == "3.0 1 0"
