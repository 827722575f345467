"""Processes that begin where this one is, with everything imported, instead of from nothing.

A drill starts hundreds of runs; importing torch and its like is most of a short run's time.
"""

import atexit
import contextlib
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

_DEFAULTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class ForkedProcess:
    """A fork of this process that runs ``python -m MODULE ARGUMENTS``, driven as a ``Popen``.

    Only where no thread and no device is in use yet.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: Any,  # noqa: ANN401 - what Popen takes: a file, a number or None
        stderr: Any,  # noqa: ANN401
        start_new_session: bool,
        preexec_fn: Callable[[], None] | None = None,
    ) -> None:
        """Start it; the arguments are those of ``subprocess.Popen``.

        Raises:
            ValueError: ``command`` is another one than Python with ``-m``.
        """
        arguments = _module_arguments(command)
        if stdin != subprocess.DEVNULL:
            raise ValueError("a forked process reads nothing")
        self.returncode: int | None = None
        self.stdout, out = _pipe(stdout)
        self.stderr, err = (None, out) if stderr == subprocess.STDOUT else _pipe(stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(arguments, env, out, err, new_session=start_new_session, before=preexec_fn)
        for given, number in ((stdout, out), (stderr, err)):
            if given == subprocess.PIPE and number is not None:
                os.close(number)

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal, or None while it runs."""
        return self._collect(os.WNOHANG)

    def wait(self) -> int:
        """Return the exit code, once it has ended."""
        code = self._collect(0)
        assert code is not None  # noqa: S101 - a type guard: waiting ends with an exit code
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def _collect(self, flags: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _module_arguments(command: Sequence[str]) -> list[str]:
    """Return module and arguments of ``python [-P] -m module arguments``."""
    words = list(command)
    if "-m" not in words or words[0] != sys.executable:
        raise ValueError(f"expected {sys.executable} ... -m MODULE ..., got {words}")
    return words[words.index("-m") + 1 :]


def _pipe(target: Any) -> tuple[IO[bytes] | None, int | None]:  # noqa: ANN401
    """Return the end to read from and the number to write to; None = as this process has it."""
    if target is None:
        return None, None
    if target == subprocess.PIPE:
        reading, writing = os.pipe()
        return os.fdopen(reading, "rb"), writing
    return None, target.fileno()


def _become(
    arguments: list[str],
    env: Mapping[str, str],
    out: int | None,
    err: int | None,
    *,
    new_session: bool,
    before: Callable[[], None] | None,
) -> None:
    """Be the command, in the child; never returns."""
    code = 1
    try:
        if new_session:
            os.setsid()
        for number in _DEFAULTS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if before is not None:
            before()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        for source, target in ((out, 1), (err, 2)):
            if source is not None:
                os.dup2(source, target)
        os.environ.clear()
        os.environ.update(env)
        code = run_module(arguments)
    finally:
        os._exit(code)


def run_module(arguments: Sequence[str]) -> int:
    """Run ``python -m``'s arguments here, to the end of its exit functions; return its code."""
    sys.argv = list(arguments)
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException:  # noqa: BLE001 - as the interpreter does at its end
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # whoever read it may have left
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    sys.stderr.write(f"{error.code}\n")
    return 1
