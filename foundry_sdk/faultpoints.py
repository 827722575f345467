"""Named moments at which a test or a drill can make a process die, fail or hang.

``FOUNDRY_FAULT=checkpoint.rename:1:kill`` kills the process the first time it reaches
``checkpoint.rename``; ``checkpoint.*:7:eio`` fails the seventh of all checkpoint moments;
``collective.*:3:hang:1`` lets rank 1 hang, and no other. A loop over n = 1, 2, ... until nothing
fires visits every moment there is (the way SQLite's own out-of-memory and I/O tests work).
``FOUNDRY_FAULT_LOG=file`` notes there each moment that is reached, and what fires. Without the
variables a moment does nothing.
"""

import errno
import json
import os
import signal
import threading
import time
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import attrs

VARIABLE: Final = "FOUNDRY_FAULT"
LOG_VARIABLE: Final = "FOUNDRY_FAULT_LOG"
ACTIONS: Final = ("kill", "eio", "enospc", "hang")

# A process lives once, so what it has reached belongs to the process and not to any object.
_reached: Final[Counter[str]] = Counter()
_counting: Final = threading.Lock()


@attrs.frozen(kw_only=True)
class Moment:
    """One line of the log.

    Attributes:
        point: what was reached.
        rank: by which rank; 0 where there is no other.
        fired: the fault that happened there, or None.
        at: seconds on the machine's monotonic clock.
    """

    point: str
    rank: int
    fired: str | None
    at: float


def reach(point: str) -> None:
    """Say that ``point`` is about to happen; die, fail or hang here if the variable says so.

    Raises:
        OSError: the variable asks for ``eio`` or ``enospc`` here.
        ValueError: the variable is malformed.
    """
    fault, log = os.environ.get(VARIABLE), os.environ.get(LOG_VARIABLE)
    if not fault and not log:
        return
    action = _action(point, fault) if fault else None
    if log:
        _note(log, point, action)
    if action is None:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "hang":
        while True:
            time.sleep(3600)
    number = errno.EIO if action == "eio" else errno.ENOSPC
    raise OSError(number, f"{os.strerror(number)} (injected at {point})")


def read_log(path: Path) -> list[Moment]:
    """Return what processes noted, in the order they did; [] without a file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Moment(**json.loads(line)) for line in lines]


def _action(point: str, fault: str) -> str | None:
    """Return what ``fault`` does at this moment, which is counted."""
    pattern, nth, action, rank = _parse(fault)
    if not fnmatchcase(point, pattern) or rank not in {None, _rank()}:
        return None
    with _counting:
        _reached[fault] += 1
        return action if _reached[fault] == nth else None


def _note(path: str, point: str, fired: str | None) -> None:
    moment = Moment(point=point, rank=_rank(), fired=fired, at=time.monotonic())
    line = json.dumps(attrs.asdict(moment)) + "\n"
    # One write in append mode: lines of several processes do not mix.
    with open(path, "ab", buffering=0) as file:
        file.write(line.encode())


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _parse(fault: str) -> tuple[str, int, str, int | None]:
    pattern, nth, action, rank = [*fault.split(":"), "", "", ""][:4]
    if (
        fault.count(":") not in {2, 3}
        or not nth.isdigit()
        or int(nth) < 1
        or action not in ACTIONS
        or (rank and not rank.isdigit())
    ):
        raise ValueError(
            f"{VARIABLE}={fault!r}: expected <point>:<nth>:<action>, such as "
            f"'checkpoint.rename:1:kill', and :<rank> for one rank alone; actions are "
            f"{', '.join(ACTIONS)}"
        )
    return pattern, int(nth), action, int(rank) if rank else None
