import errno
import os
import signal
import subprocess
import sys

import pytest

from foundry_sdk.faultpoints import LOG_VARIABLE, VARIABLE, reach, read_log


def test_without_the_variable_nothing_happens(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    for _ in range(3):
        reach("checkpoint.write")


@pytest.mark.parametrize(("action", "number"), [("eio", errno.EIO), ("enospc", errno.ENOSPC)])
def test_the_nth_matching_moment_fails_and_no_other(monkeypatch, action, number):
    monkeypatch.setenv(VARIABLE, f"{action}-test.*:2:{action}")
    reach(f"{action}-test.write")
    reach("another.write")
    with pytest.raises(OSError, match="injected") as caught:
        reach(f"{action}-test.rename")
    assert caught.value.errno == number
    reach(f"{action}-test.write")


def test_kill_leaves_no_chance_to_clean_up():
    script = (
        "from foundry_sdk.faultpoints import reach\n"
        "try:\n    reach('a')\nfinally:\n    print('cleaned', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, VARIABLE: "a:1:kill"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""


@pytest.mark.parametrize(
    "text", ["a", "a:1", "a:0:kill", "a:x:kill", "a:1:explode", "a:1:kill:x", "a:1:eio:1:2"]
)
def test_a_malformed_variable_is_an_error(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ValueError, match="expected <point>:<nth>:<action>"):
        reach("a")


def test_one_rank_alone_fails(monkeypatch):
    monkeypatch.setenv(VARIABLE, "rank-test:1:eio:1")
    monkeypatch.setenv("RANK", "0")
    reach("rank-test")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(OSError, match="injected"):
        reach("rank-test")


def test_what_is_reached_and_what_fires_is_noted(monkeypatch, tmp_path):
    monkeypatch.setenv(LOG_VARIABLE, str(tmp_path / "log"))
    assert read_log(tmp_path / "log") == []
    reach("first")
    monkeypatch.setenv(VARIABLE, "log-test:1:eio")
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(OSError, match="injected"):
        reach("log-test")
    reach("log-test")
    noted = read_log(tmp_path / "log")
    assert [(moment.point, moment.rank, moment.fired) for moment in noted] == [
        ("first", 0, None),
        ("log-test", 3, "eio"),
        ("log-test", 3, None),
    ]
    assert sorted(moment.at for moment in noted) == [moment.at for moment in noted]
