"""Starting a run's processes on this machine, and ending all of them when one fails."""

import contextlib
import logging
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import attrs

from foundry_sdk.data.shared_memory import reclaim
from foundry_sdk.errors import LaunchError
from foundry_sdk.launch.cause import exit_text, shell_code
from foundry_sdk.launch.topology import LaunchOptions, Topology
from foundry_sdk.launch.watchdog import HUNG_EXIT, Hang, find_hang, stacks_of
from foundry_sdk.launch.worker import Start, Worker, output_path

_log = logging.getLogger(__name__)
_POLL_SECONDS: Final = 0.02
_WATCH_SECONDS: Final = 0.25
"""How often ranks are looked after that may hang."""
_SETTLE_SECONDS: Final = 0.5
"""How long to wait after a failure for others that failed with it, before choosing the first."""
_GRACE_SECONDS: Final = 5.0
"""Between SIGTERM and SIGKILL for workers whose peer has failed."""
_STOP_SECONDS: Final = 120.0
"""How long the rest may take when a worker has stopped as asked; it may still be writing."""
_SAME_REQUEST_SECONDS: Final = 1.0
"""Signals this close together are one request, as for the workers (training/signals.py)."""
_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_STOPPED: Final = frozenset(128 + number for number in _FORWARDED)


@attrs.frozen(kw_only=True)
class LaunchResult:
    """How the processes of this machine ended.

    Attributes:
        exit_code: of the first that failed, else 0; 128 + n after signal n; 77 for a rank that
            hung.
        rank: the first that failed; None where none did, or a signal asked for the end.
        message: why, for the user, with the rank; None where nothing failed.
        details: the traceback behind ``message``, where there is one.
    """

    exit_code: int
    rank: int | None = None
    message: str | None = None
    details: str | None = None


def launch(
    command: Sequence[str],
    topology: Topology,
    options: LaunchOptions,
    *,
    start: Start = subprocess.Popen,
) -> LaunchResult:
    """Run ``command`` as this machine's processes of a run, until all have ended.

    SIGTERM, SIGINT and SIGUSR1 are passed on to the workers; a second one kills them. When a
    worker fails, the others get SIGTERM and after five seconds SIGKILL. When ranks wait for
    another one as long as the run allows (``dist_timeout``), its stacks are taken and all are
    killed. Workers, what they started and their shared memory never outlive this call, nor the
    first two this process.

    Args:
        command: program and arguments, the same for every process.
        topology: which processes there are.
        options: where output goes.
        start: what makes a process, called as ``subprocess.Popen`` is.

    Raises:
        LaunchError: a file for output cannot be written, or two ranks would share one.
    """
    _check_files(topology, options)
    with _own_folder() as folder:
        workers: list[Worker] = []
        with _passing_on(workers) as asked:
            try:
                for local_rank in range(topology.nproc):
                    workers.append(
                        Worker(command, topology, local_rank, options, folder, start=start)
                    )
                for worker in workers:
                    worker.listen()
                    if asked.number is not None:  # it came while they were started
                        worker.send(asked.number)
                return _supervise(workers, asked)
            finally:
                for worker in workers:
                    worker.kill()
                if any(worker.process.returncode != 0 for worker in workers):
                    reclaim()


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    # A TemporaryDirectory would be removed by the first forked worker that ends, too.
    folder = Path(tempfile.mkdtemp(prefix="foundry-launch-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_files(topology: Topology, options: LaunchOptions) -> None:
    for option, pattern in (("--stdout", options.stdout), ("--stderr", options.stderr)):
        if pattern is not None:
            local_ranks = range(1, topology.nproc)
            paths = {output_path(option, pattern, topology, local) for local in local_ranks}
            if len(paths) < len(local_ranks):
                raise LaunchError(
                    f"{option} {pattern!r}: several ranks would write to one file; put {{rank}} "
                    "into its name"
                )


class _Asked:
    """What signals asked of this launcher: to stop (the first one's number), or to end at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.at_once = False
        self._at = 0.0

    def take(self, number: int) -> int | None:
        """Note a signal; return what to send to the workers, if anything."""
        now = time.monotonic()
        if self.number is None:
            self.number, self._at = number, now
            return number
        if now - self._at < _SAME_REQUEST_SECONDS:
            return None
        self.at_once = True
        return signal.SIGKILL


@contextlib.contextmanager
def _passing_on(workers: Sequence[Worker]) -> Iterator[_Asked]:
    """Pass signals on to ``workers`` while entered."""
    asked = _Asked()

    def receive(number: int, frame: FrameType | None) -> None:
        del frame
        to_send = asked.take(number)
        if to_send is not None:
            for worker in workers:
                worker.send(to_send)

    before = {number: signal.signal(number, receive) for number in _FORWARDED}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _supervise(workers: Sequence[Worker], asked: _Asked) -> LaunchResult:
    """Wait until all have ended or one has failed; then see to the others' end."""
    watched = time.monotonic()
    while True:
        codes = [worker.process.poll() for worker in workers]
        if all(code == 0 for code in codes):
            return LaunchResult(exit_code=0)
        if any(code not in {None, 0} for code in codes):
            break
        if time.monotonic() - watched > _WATCH_SECONDS:
            hang = find_hang(workers)
            if hang is not None:
                return _hung(hang)
            watched = time.monotonic()
        time.sleep(_POLL_SECONDS)
    if asked.number is not None or any(code in _STOPPED for code in codes):
        return _stopped(workers, asked)
    return _failed(workers)


def _stopped(workers: Sequence[Worker], asked: _Asked) -> LaunchResult:
    """End a run that was asked to stop: each worker goes by itself, having saved."""
    _wait(workers, _STOP_SECONDS, until=lambda: asked.at_once or _broken(workers))
    _wait(workers, _GRACE_SECONDS, until=lambda: asked.at_once)
    late = [worker.rank for worker in workers if worker.process.poll() is None]
    if late:
        _log.warning("rank(s) %s did not stop and are killed", ", ".join(map(str, late)))
    codes = [worker.process.poll() for worker in workers]
    failed = [
        worker
        for worker, code in zip(workers, codes, strict=True)
        if code is not None and code > 0 and code not in _STOPPED
    ]
    if failed:  # it failed on its way out, such as in saving
        return _result(failed[0])
    code = next((code for code in codes if code in _STOPPED), None)
    if code is None:
        code = 128 + (asked.number or signal.SIGTERM)
    return LaunchResult(exit_code=code)


def _broken(workers: Sequence[Worker]) -> bool:
    """Return whether one ended without stopping properly, so that its peers cannot either."""
    codes = [worker.process.poll() for worker in workers]
    return any(code is not None and code != 0 and code not in _STOPPED for code in codes)


def _failed(workers: Sequence[Worker]) -> LaunchResult:
    """Choose the first that failed, end the others, and say why."""
    time.sleep(_SETTLE_SECONDS)
    first = _first(workers)
    hang = find_hang(workers)
    if hang is not None and not hang.elsewhere:  # it gave up waiting a moment before the watch
        return _hung(hang)
    for worker in workers:
        worker.send(signal.SIGTERM)
    _wait(workers, _GRACE_SECONDS, until=lambda: False)
    return _result(first)


def _hung(hang: Hang) -> LaunchResult:
    """Say which rank hung and where; whoever called this ends all of them."""
    stacks = stacks_of(hang.late)
    lines = [hang.message]
    for worker in hang.late:
        text = stacks.get(worker.rank) or "(it has not begun, or gave none)"
        lines.append(f"stacks of rank {worker.rank}:\n{text}")
    rank = hang.late[0].rank
    named = "" if hang.elsewhere else f"rank {', '.join(str(w.rank) for w in hang.late)}: "
    return LaunchResult(
        exit_code=HUNG_EXIT,
        rank=None if hang.elsewhere else rank,
        message=named + "\n".join(lines),
    )


def _first(workers: Sequence[Worker]) -> Worker:
    """Return the worker whose end caused the others'.

    One that a signal killed could not cause anything but what its peers then complain of, so it
    comes before them; else the earliest that said why, on the machine's one clock.
    """
    failed = [worker for worker in workers if worker.process.poll() not in {None, 0}]
    killed = [worker for worker in failed if (worker.process.poll() or 0) < 0]
    if killed:
        return killed[0]
    told = {worker.rank: worker.cause() for worker in failed}
    silent = [worker for worker in failed if told[worker.rank] is None]
    speaking = sorted(
        (cause.at, worker.rank, worker)
        for worker in failed
        if (cause := told[worker.rank]) is not None
    )
    return speaking[0][2] if speaking else silent[0]


def _result(worker: Worker) -> LaunchResult:
    code = worker.process.wait()
    cause = worker.cause()
    if cause is not None:
        message, details = cause.message, cause.details
    else:
        message, details = exit_text(code), None
        lines = worker.last_lines()
        if lines:
            message += "; its last lines:\n" + "\n".join(lines)
    return LaunchResult(
        exit_code=shell_code(code),
        rank=worker.rank,
        message=f"rank {worker.rank}: {message}",
        details=details,
    )


def _wait(workers: Sequence[Worker], seconds: float, *, until: Callable[[], bool]) -> None:
    """Wait until all have ended, ``until`` holds, or time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not until():
        if all(worker.process.poll() is not None for worker in workers):
            return
        time.sleep(_POLL_SECONDS)
