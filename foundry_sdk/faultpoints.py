"""Named moments at which a test can make a process die, fail or hang.

``FOUNDRY_FAULT=checkpoint.rename:1:kill`` kills the process the first time it reaches
``checkpoint.rename``; ``checkpoint.*:7:eio`` fails the seventh of all checkpoint moments. A loop
over n = 1, 2, ... until nothing fires visits every moment there is (the way SQLite's own
out-of-memory and I/O tests work). Without the variable a moment does nothing.
"""

import errno
import os
import signal
import threading
import time
from collections import Counter
from fnmatch import fnmatchcase
from typing import Final

VARIABLE: Final = "FOUNDRY_FAULT"
ACTIONS: Final = ("kill", "eio", "enospc", "hang")

# A process lives once, so what it has reached belongs to the process and not to any object.
_reached: Final[Counter[str]] = Counter()
_counting: Final = threading.Lock()


def reach(point: str) -> None:
    """Say that ``point`` is about to happen; die, fail or hang here if the variable says so.

    Raises:
        OSError: the variable asks for ``eio`` or ``enospc`` here.
        ValueError: the variable is malformed.
    """
    fault = os.environ.get(VARIABLE)
    if not fault:
        return
    pattern, nth, action = _parse(fault)
    if not fnmatchcase(point, pattern):
        return
    with _counting:
        _reached[fault] += 1
        if _reached[fault] != nth:
            return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "hang":
        while True:
            time.sleep(3600)
    number = errno.EIO if action == "eio" else errno.ENOSPC
    raise OSError(number, f"{os.strerror(number)} (injected at {point})")


def _parse(fault: str) -> tuple[str, int, str]:
    pattern, _, rest = fault.partition(":")
    nth, _, action = rest.partition(":")
    if not nth.isdigit() or int(nth) < 1 or action not in ACTIONS:
        raise ValueError(
            f"{VARIABLE}={fault!r}: expected <point>:<nth>:<action>, such as "
            f"'checkpoint.rename:1:kill'; actions are {', '.join(ACTIONS)}"
        )
    return pattern, int(nth), action
