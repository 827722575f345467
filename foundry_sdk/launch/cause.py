"""Why a worker ended, told to the launcher through a file, so that it is said once."""

import json
import os
import signal
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from foundry_sdk.errors import FoundryError

VARIABLE: Final = "FOUNDRY_CAUSE_FILE"
"""Set by the launcher: where a worker writes why it failed, instead of printing it."""


@attrs.frozen(kw_only=True)
class Cause:
    """Why one process ended.

    Attributes:
        message: for the user; the whole traceback where the error was not foreseen.
        details: the traceback.
        at: seconds on the machine's monotonic clock, equal for all its processes.
    """

    message: str
    details: str
    at: float


def write_cause(error: BaseException, environ: Mapping[str, str]) -> bool:
    """Tell the launcher about ``error``; return False where no launcher of ours asked for it."""
    path = environ.get(VARIABLE)
    if path is None:
        return False
    details = "".join(traceback.format_exception(error))
    cause = Cause(
        message=str(error) if isinstance(error, FoundryError) else details,
        details=details,
        at=time.monotonic(),
    )
    whole = Path(path)
    part = whole.with_suffix(".part")
    part.write_text(json.dumps(attrs.asdict(cause)), encoding="utf-8")
    os.replace(part, whole)
    return True


def read_cause(path: Path) -> Cause | None:
    """Return what a worker wrote, or None where it ended without a word."""
    try:
        return Cause(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def exit_text(code: int) -> str:
    """Say how a process ended, from the exit code that ``subprocess`` gives."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    hint = " (the system's out-of-memory killer does that)" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def shell_code(code: int) -> int:
    """Return the exit code of a shell for one of ``subprocess``: 128 + n after signal n."""
    return code if code >= 0 else 128 - code
