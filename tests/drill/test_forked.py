"""A fork that runs a module is, from the outside, the process that Python would have started."""

import os
import subprocess
import sys

import pytest

from foundry_sdk.drill.forked import ForkedProcess

MODULE = """
import atexit, os, signal, sys, time
atexit.register(print, "at exit", flush=True)
what = sys.argv[1]
print("said", __name__, os.environ.get("MARK"), os.getsid(0) == os.getpid(), flush=True)
print("error", file=sys.stderr)
if what == "code":
    sys.exit(7)
if what == "words":
    sys.exit("in words")
if what == "raise":
    raise KeyError("unforeseen")
if what == "wait":
    time.sleep(600)
"""
START = """
import subprocess, sys
from foundry_sdk.drill.forked import ForkedProcess
process = ForkedProcess(
    [sys.executable, "-m", "planted", *sys.argv[1:]], env={"MARK": "x"}, stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
)
out, err = process.stdout.read(), process.stderr.read()
sys.stdout.write(repr((process.wait(), out, err)))
"""


@pytest.fixture
def planted(tmp_path):
    (tmp_path / "planted.py").write_text(MODULE)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("what", ["nothing", "code", "words", "raise"])
def test_it_says_and_returns_the_same(planted, what):
    """Compared with a process that Python itself has started."""
    alone = subprocess.run(
        [sys.executable, "-m", "planted", what],
        env={**planted, "MARK": "x"}, capture_output=True, start_new_session=True, check=False,
    )  # fmt: skip
    forked = subprocess.run(
        [sys.executable, "-c", START, what], env=planted, capture_output=True, check=True
    )
    code, out, err = eval(forked.stdout)  # noqa: S307 - our own repr
    assert (code, out) == (alone.returncode, alone.stdout)
    assert err.splitlines()[-1] == alone.stderr.splitlines()[-1]


SIGNAL = """
import os, signal, subprocess, sys
from foundry_sdk.drill.forked import ForkedProcess
process = ForkedProcess(
    [sys.executable, "-m", "planted", "wait"], env=dict(os.environ), stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
)
assert process.stdout.readline().startswith(b"said __main__")
assert process.poll() is None
process.send_signal(signal.SIGTERM)
assert process.wait() == -signal.SIGTERM
process.send_signal(signal.SIGTERM)  # to nobody
assert process.poll() == -signal.SIGTERM
"""


def test_it_ends_by_a_signal(planted):
    subprocess.run([sys.executable, "-c", SIGNAL], env=planted, check=True, timeout=60)


def test_another_command_than_a_module_is_refused():
    with pytest.raises(ValueError, match="-m MODULE"):
        ForkedProcess(["sleep", "1"], env={}, stdin=subprocess.DEVNULL, stdout=None, stderr=None,
                      start_new_session=False)  # fmt: skip
