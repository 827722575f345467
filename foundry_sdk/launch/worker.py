"""One worker process: started with its place, heard, and ended with all that it started."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Protocol

from foundry_sdk.errors import LaunchError
from foundry_sdk.launch.cause import VARIABLE, Cause, read_cause
from foundry_sdk.launch.pulse import DUMP_SIGNAL, STACKS, Beat, read_beat
from foundry_sdk.launch.pulse import VARIABLE as PULSE_VARIABLE
from foundry_sdk.launch.topology import LaunchOptions, Topology

_KEPT_LINES: Final = 60
_PR_SET_PDEATHSIG: Final = 1
_Output = IO[bytes] | int | None


class Process(Protocol):
    """What of ``subprocess.Popen`` a worker needs."""

    pid: int
    returncode: int | None
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def wait(self) -> int:
        """Return the exit code, once it has ended."""

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""


Start = Callable[..., Process]
"""Takes the command and keywords as ``subprocess.Popen`` does."""


class Worker:
    """A process of the run in a session of its own, which dies with the launcher.

    Local rank 0 writes to the launcher's own output. Of the others the last lines are kept, or
    everything goes to the files that the options name.
    """

    def __init__(
        self,
        command: Sequence[str],
        topology: Topology,
        local_rank: int,
        options: LaunchOptions,
        folder: Path,
        *,
        start: Start,
    ) -> None:
        """Start it.

        Args:
            command: what to run, the same in every process.
            topology: of the run.
            local_rank: which of this machine's processes it is.
            options: where output goes.
            folder: of the launcher, for the files with a failure's cause and the pulse.
            start: what makes the process.

        Raises:
            LaunchError: a file for output cannot be written.
        """
        self.rank = topology.base_rank + local_rank
        self._cause_file = folder / f"rank-{self.rank}.json"
        self._pulse_file = folder / f"rank-{self.rank}.pulse"
        self.stacks_file = self._pulse_file.with_suffix(STACKS)
        files_of_rank = {VARIABLE: self._cause_file, PULSE_VARIABLE: self._pulse_file}
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._reader: threading.Thread | None = None
        with contextlib.ExitStack() as files:
            stdout, stderr = _outputs(files, options, topology, local_rank)
            self.process: Process = start(
                command,
                env=_environment(topology, local_rank, files_of_rank),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),  # no thread runs yet
            )

    def listen(self) -> None:
        """Begin to read its output; threads start when all processes are there."""
        stream = self.process.stdout or self.process.stderr
        if stream is not None:
            self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
            self._reader.start()

    def send(self, number: int) -> None:
        """Send a signal to the process alone; it knows what to do with its children."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the process and everything in its session's group, also when it is dead itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def cause(self) -> Cause | None:
        """Return why it failed, if it said so."""
        return read_cause(self._cause_file)

    def beat(self) -> Beat | None:
        """Return its last sign of life; None where it has not come so far."""
        return read_beat(self._pulse_file)

    def ask_for_stacks(self) -> bool:
        """Have it write the stacks of its threads to ``stacks_file``; False where it has ended.

        Only after its first beat: before, the signal would end it.
        """
        if self.process.poll() is not None:
            return False
        self.process.send_signal(DUMP_SIGNAL)
        self.process.send_signal(signal.SIGCONT)  # it may have been stopped
        return True

    def last_lines(self) -> list[str]:
        """Return the end of its output; nothing for local rank 0, whose output was shown."""
        if self._reader is not None:
            self._reader.join(timeout=1.0)
        return list(self._lines)

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._lines.append(line.decode("utf-8", errors="replace").rstrip("\r\n"))


def _environment(topology: Topology, local_rank: int, files: Mapping[str, Path]) -> dict[str, str]:
    environment = {**os.environ, **topology.environment(local_rank)}
    environment["PYTHONUNBUFFERED"] = "1"
    environment |= {name: str(path) for name, path in files.items()}
    if topology.nproc > 1 and "OMP_NUM_THREADS" not in environment:
        # Each would start a thread per core, and they would fight for them.
        cores = len(os.sched_getaffinity(0))
        environment["OMP_NUM_THREADS"] = str(max(1, cores // topology.nproc))
    return environment


def _outputs(
    files: contextlib.ExitStack, options: LaunchOptions, topology: Topology, local_rank: int
) -> tuple[_Output, _Output]:
    """Return what ``Popen`` takes as stdout and stderr: at most one of them is a pipe."""
    if local_rank == 0:
        return None, None
    outputs: list[_Output] = []
    for option, pattern in (("--stdout", options.stdout), ("--stderr", options.stderr)):
        if option == "--stderr" and options.stderr == options.stdout:
            outputs.append(subprocess.STDOUT)
        elif pattern is None:
            outputs.append(subprocess.PIPE)
        else:
            path = output_path(option, pattern, topology, local_rank)
            outputs.append(_open(files, option, path))
    return outputs[0], outputs[1]


def output_path(option: str, pattern: str, topology: Topology, local_rank: int) -> Path:
    """Return the file that ``pattern`` means for a local rank.

    Raises:
        LaunchError: it has another placeholder than those of ``LaunchOptions``.
    """
    values = {name.lower(): text for name, text in topology.environment(local_rank).items()}
    try:
        return Path(pattern.format_map(values))
    except (KeyError, ValueError, IndexError) as error:
        raise LaunchError(
            f"{option} {pattern!r}: {error}; placeholders are {{rank}}, {{local_rank}}, "
            "{node_rank}, {world_size} and {local_world_size}"
        ) from error


def _open(files: contextlib.ExitStack, option: str, path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return files.enter_context(path.open("wb"))
    except OSError as error:
        raise LaunchError(f"{option} {str(path)!r}: cannot be written: {error}") from error


def _die_with(parent: int) -> Callable[[], None]:
    """Return what a child runs before its command: it asks to be killed with its parent."""
    libc = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before this line
            os._exit(1)

    return ask
