"""Many workers, one order: results come back in the order of the units."""

import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import attrs
import numpy as np

import foundry_sdk
from foundry_sdk.data.convert.encode import Encoded, Errors, UnitEncoder, Vocabulary
from foundry_sdk.data.convert.units import Unit
from foundry_sdk.data.convert.worker import encode_unit, receive, send
from foundry_sdk.errors import DataError, FoundryError, RunError

_START: Final = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from foundry_sdk.data.convert.worker import main; main()"
)


@attrs.frozen(kw_only=True)
class WorkerSettings:
    """What every worker is told at its start; see ``UnitEncoder``."""

    vocabulary: Vocabulary
    column: str
    errors: Errors


class _Worker:
    """One process, used by one thread at a time."""

    def __init__(self, settings: WorkerSettings) -> None:
        root = str(Path(foundry_sdk.__file__).parents[1])
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-c", _START, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        self._stdin = cast("BinaryIO", self._process.stdin)
        self._stdout = cast("BinaryIO", self._process.stdout)
        self._settings: dict[str, Any] | None = attrs.asdict(settings)

    def encode(self, unit: Unit) -> Encoded:
        try:
            if self._settings is not None:
                send(self._stdin, self._settings)
                self._settings = None
            send(self._stdin, dict(unit.header), unit.payload)
            answer = receive(self._stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise RunError(
                f"a tokenizing process ended with exit code {self._process.wait()} at "
                f"{unit.place}; what is written so far is kept: go on with resume, and with fewer "
                "workers if the machine ran out of memory"
            )
        header, payload = answer
        if "error" in header:
            raise DataError(header["error"])
        boundary = 8 * header.pop("segments")
        lengths = np.frombuffer(payload[:boundary], "<i8")
        return Encoded(data=payload[boundary:], lengths=lengths, **header)

    def stop(self) -> None:
        """End the process, also in the midst of a unit."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Close the pipes of a process that has ended."""
        with suppress(BrokenPipeError):
            self._stdin.close()
        self._stdout.close()


@contextmanager
def encoding(settings: WorkerSettings, workers: int) -> Iterator["Pool"]:
    """Start processes for the time of the context."""
    started = [_Worker(settings) for _ in range(workers)]
    executor = ThreadPoolExecutor(workers, thread_name_prefix="foundry-convert")
    try:
        yield Pool(started, executor)
    finally:
        for worker in started:
            worker.stop()
        executor.shutdown(cancel_futures=True)
        for worker in started:
            worker.close()


class Pool:
    """Running workers."""

    def __init__(self, workers: list[_Worker], executor: ThreadPoolExecutor) -> None:
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in workers:
            self._free.put(worker)
        self._executor = executor
        self._window = 2 * len(workers) + 2

    def results(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, Encoded]]:
        """Yield each unit with what became of it, in order, a bounded number ahead.

        Raises:
            DataError: of the first unit that cannot be encoded.
            RunError: a worker died.
        """
        pending: deque[tuple[Unit, Future[Encoded]]] = deque()
        failure: FoundryError | None = None
        source = iter(units)
        while True:
            while failure is None and len(pending) < self._window:
                try:
                    unit = next(source)
                except StopIteration:
                    break
                except FoundryError as error:  # what lies before it comes first, in any case
                    failure = error
                    break
                pending.append((unit, self._executor.submit(self._encode, unit)))
            if not pending:
                break
            first, future = pending.popleft()
            yield first, future.result()
        if failure is not None:
            raise failure

    def _encode(self, unit: Unit) -> Encoded:
        worker = self._free.get()
        try:
            return worker.encode(unit)
        finally:
            self._free.put(worker)


def encode_here(encoder: UnitEncoder, units: Iterable[Unit]) -> Iterator[tuple[Unit, Encoded]]:
    """Do without processes: documents that stay text need no more than to be parsed."""
    for unit in units:
        yield unit, encode_unit(encoder, dict(unit.header), unit.payload)
