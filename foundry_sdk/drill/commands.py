"""``foundry`` commands as processes: begun where everything is imported, or from nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

import attrs

from foundry_sdk.errors import RunError

_PRELOADED: Final = (
    "transformers",
    "accelerate",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "foundry_sdk.finetuner",
    "foundry_sdk.builtin",
    "foundry_sdk.training.run",
    "foundry_sdk.data.streaming_source",
    "foundry_sdk.data.collate",
    "foundry_sdk.data.convert.run",
    "foundry_sdk.models.mpt.model",
    "foundry_sdk.losses.cross_entropy",
)
_FOREIGN: Final = frozenset(
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "BASE_RANK"}
    | {"MASTER_ADDR", "MASTER_PORT", "RUN_NAME"}
)


@attrs.frozen(kw_only=True)
class Ended:
    """How a command ended; times are on the machine's monotonic clock.

    Attributes:
        code: as a shell gives it: 128 + n after signal n.
        too_late: it had to be ended, as it took too long.
        started, ended: seconds.
    """

    code: int
    too_late: bool
    started: float
    ended: float


class Commands(Protocol):
    """Runs ``foundry ARGUMENTS`` to their end, one at a time."""

    def run(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        output: Path,
        seconds: float,
        processes: int = 1,
    ) -> Ended:
        """Run one command.

        Args:
            arguments: what stands behind ``foundry``.
            environment: added to this process's.
            output: file that what it prints is appended to.
            seconds: after so many it is killed.
            processes: how many ``foundry train`` starts.
        """

    def close(self) -> None:
        """Leave no process behind."""


class WarmCommands:
    """Forks of one process that has imported everything; on the CPU."""

    def __init__(self, log: Path) -> None:
        """Start it; it is ready when the first command needs it.

        Args:
            log: file for what goes wrong in it.
        """
        environment = clean_environment() | {"CUDA_VISIBLE_DEVICES": ""}
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._log = log
        with log.open("ab") as errors:
            self._server = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "foundry_sdk.drill.server", *_PRELOADED],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
                start_new_session=True,
            )
        self._answer()

    def run(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        output: Path,
        seconds: float,
        processes: int = 1,
    ) -> Ended:
        """Run one command in a fork."""
        job = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "output": str(output),
            "seconds": seconds,
            "processes": processes,
        }
        assert self._server.stdin is not None  # noqa: S101 - a type guard
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return Ended(**self._answer())

    def close(self) -> None:
        """End the server and, with it, what it runs."""
        _end(self._server)

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout is not None  # noqa: S101 - a type guard
        line = self._server.stdout.readline()
        if not line:
            told = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RunError(f"the process that starts the drill's runs has ended:\n{told}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "WarmCommands":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


class ColdCommands:
    """Processes of their own from the first import on, as a user's commands are."""

    def run(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        output: Path,
        seconds: float,
        processes: int = 1,
    ) -> Ended:
        """Run one command."""
        words = list(arguments)
        if processes > 1:
            words += ["--nproc", str(processes)]
        started, late = time.monotonic(), False
        with output.open("ab") as file:
            process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "foundry_sdk", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**clean_environment(), **environment},
                start_new_session=True,
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                late = True
                code = _end(process)
            except BaseException:
                _end(process)
                raise
        return Ended(
            code=code if code >= 0 else 128 - code,
            too_late=late,
            started=started,
            ended=time.monotonic(),
        )

    def close(self) -> None:
        """Each command has ended already."""


def clean_environment() -> dict[str, str]:
    """Return this process's variables without those that would place a run among others."""
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN}


def _end(process: "subprocess.Popen[Any]") -> int:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    return process.wait()
