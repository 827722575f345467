"""Finding the rank that holds all others up, and what it is doing."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from foundry_sdk.launch.pulse import Beat
from foundry_sdk.launch.worker import Worker

HUNG_EXIT: Final = 77
"""Exit code of a run that was ended because a rank hung."""
_EARLY: Final = 0.1
"""Of the time allowed, at most ``_EARLY_SECONDS``: before the collective itself gives up, and a
rank that only waited is the one that fails."""
_EARLY_SECONDS: Final = 2.0
_STACK_SECONDS: Final = 3.0
_QUIET_SECONDS: Final = 0.1
_POLL_SECONDS: Final = 0.02


@attrs.frozen(kw_only=True)
class Hang:
    """Ranks that others wait for in vain.

    Attributes:
        late: the workers that are behind; those that wait themselves where none of this machine
            is behind them.
        elsewhere: the rank that is behind is on another machine, or cannot be told.
        message: for the user.
    """

    late: tuple[Worker, ...]
    elsewhere: bool
    message: str


def find_hang(workers: Sequence[Worker]) -> Hang | None:
    """Return what ranks wait for, or waited until they failed, longer than they may.

    Args:
        workers: of this machine.

    Returns:
        None where all is well.
    """
    now = time.monotonic()
    # What a rank that ended has left undone is not for it to make up for.
    living = [worker for worker in workers if worker.process.poll() is None]
    beats = [(worker, beat) for worker in workers if (beat := worker.beat()) is not None]
    waiting = [
        (worker, beat)
        for worker, beat in beats
        if beat.waits and now - beat.at > _allowed(beat.timeout)
    ]
    if not waiting:
        return _left_behind(workers, living, now)
    beat = min((beat for _, beat in waiting), key=lambda beat: beat.at)
    behind = [worker for worker in living if _count(worker.beat()) < beat.count]
    fewest = min((_count(worker.beat()) for worker in behind), default=0)
    late = tuple(worker for worker in behind if _count(worker.beat()) == fewest)
    waiters = tuple(worker for worker, _ in waiting)
    return Hang(
        late=late or waiters,
        elsewhere=not late,
        message=_describe(late, waiters, beat, seconds=now - beat.at),
    )


def _left_behind(workers: Sequence[Worker], living: Sequence[Worker], now: float) -> Hang | None:
    """Return the ranks that do not end, long after others have ended well."""
    ended = [worker for worker in workers if worker.process.poll() == 0]
    beats = {worker.rank: beat for worker in workers if (beat := worker.beat()) is not None}
    since = max((beats[worker.rank].at for worker in ended if worker.rank in beats), default=now)
    late = tuple(
        worker
        for worker in living
        if (beat := beats.get(worker.rank)) is not None and now - max(since, beat.at) > beat.timeout
    )
    if not ended or not late:
        return None
    timeout = beats[late[0].rank].timeout
    message = (
        f"hung: rank(s) {_ranks(ended)} ended {now - since:.1f} s ago, and it did not "
        f"(dist_timeout: {timeout:g})"
    )
    return Hang(late=late, elsewhere=False, message=message)


def stacks_of(workers: Sequence[Worker]) -> dict[int, str]:
    """Have workers write down where their threads are; return the text by rank."""
    asked = [worker for worker in workers if worker.beat() is not None and worker.ask_for_stacks()]
    deadline = time.monotonic() + _STACK_SECONDS
    while time.monotonic() < deadline:
        if all(_is_written(worker.stacks_file) for worker in asked):
            break
        time.sleep(_POLL_SECONDS)
    return {worker.rank: _text(worker.stacks_file) for worker in asked}


def _allowed(timeout: float) -> float:
    return timeout - min(_EARLY_SECONDS, _EARLY * timeout)


def _count(beat: Beat | None) -> int:
    return -1 if beat is None else beat.count


def _describe(
    late: Sequence[Worker], waiters: Sequence[Worker], beat: Beat, *, seconds: float
) -> str:
    waited = (
        f"rank(s) {_ranks(waiters)} waited {seconds:.1f} s in the collective {beat.inside!r} "
        f"(dist_timeout: {beat.timeout:g})"
    )
    if late:
        return f"hung: {waited} and it did not come"
    return (
        f"hung: {waited}, and no rank of this machine is behind: one of another machine, the "
        "network, or the device holds them up"
    )


def _ranks(workers: Sequence[Worker]) -> str:
    return ", ".join(str(worker.rank) for worker in workers)


def _is_written(path: Path) -> bool:
    """Return whether stacks are there and no more is being added."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return False
    return stat.st_size > 0 and time.time() - stat.st_mtime > _QUIET_SECONDS


def _text(path: Path) -> str:
    if not path.exists():
        return ""
    return path.read_text(encoding="utf-8", errors="replace").strip()
