"""``python -m foundry_sdk.drill.server MODULES``: imports them once, then forks for each job.

A job is a line of JSON on stdin; when it has ended, a line with its exit code is written to stdout.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from foundry_sdk.drill.forked import ForkedProcess, run_module
from foundry_sdk.errors import LaunchError
from foundry_sdk.launch.cause import shell_code
from foundry_sdk.launch.launcher import launch
from foundry_sdk.launch.topology import LaunchOptions, resolve_topology

_PR_SET_PDEATHSIG: Final = 1
_POLL_SECONDS: Final = 0.01


def main() -> None:
    """Serve until stdin ends."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(_do(json.loads(line))) + "\n")


def _do(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one job in a fork of its own, which ends when this process does."""
    server, started = os.getpid(), time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == server:
                code = _run(job)
        finally:
            os._exit(code)
    code, late = _wait(pid, deadline=started + job["seconds"])
    return {
        "code": shell_code(code),
        "too_late": late,
        "started": started,
        "ended": time.monotonic(),
    }


def _wait(pid: int, *, deadline: float) -> tuple[int, bool]:
    """Return the exit code, and whether it had to be ended."""
    late = False
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), late
        if not late and time.monotonic() > deadline:
            late = True
            os.killpg(pid, signal.SIGKILL)  # the launcher's workers die with it
        time.sleep(_POLL_SECONDS)


def _run(job: Mapping[str, Any]) -> int:
    """Run the command, in as many processes as it is for."""
    with open(job["output"], "ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.stdout = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115 - until the end
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    os.environ.update(job["environment"])
    command = [sys.executable, "-m", "foundry_sdk", *job["arguments"]]
    if job["processes"] == 1:
        return run_module(command[2:])
    options = LaunchOptions(nproc=job["processes"])
    try:
        result = launch(
            command,
            resolve_topology(options, os.environ, devices=0),
            options,
            start=ForkedProcess,
        )
    except LaunchError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if result.message is not None:
        sys.stderr.write(f"{result.message}\n")
    return result.exit_code


if __name__ == "__main__":
    main()
