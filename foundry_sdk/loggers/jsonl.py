"""The run's own record of its numbers: one JSON object per line, exact and continuous."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs

from foundry_sdk.errors import RunError
from foundry_sdk.events import MetricsLogged, RunFinished, RunStarted, TableLogged
from foundry_sdk.faultpoints import reach
from foundry_sdk.hookspecs import hookimpl

METRICS_FILE: Final = "metrics.jsonl"
TABLES_FILE: Final = "tables.jsonl"
_RESERVED: Final = frozenset({"step", "time"})


@attrs.frozen
class MetricsLine:
    """One moment of logging: ``time`` is seconds since 1970 (UTC), ``values`` by full key."""

    step: int
    time: float
    values: Mapping[str, float]


class JsonlLogger:
    """Appends each moment's metrics to ``metrics.jsonl``, and tables to ``tables.jsonl``.

    Floats are written with the fewest digits that read back to the same number; NaN and infinity
    as Python's ``json`` writes and reads them. When a run goes on from step s, lines after s are
    dropped, so that the file is that of a run that was never interrupted, but for the times.
    """

    key = "jsonl"

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        """Write below ``folder``, which exists."""
        self._folder = folder
        self._now = now
        self._files: dict[str, BinaryIO] = {}
        self._resumed_at = 0
        self._logged_there: frozenset[str] = frozenset()

    @hookimpl
    def run_started(self, event: RunStarted) -> None:
        """Drop what a lost stretch of the run wrote after the step it goes on from."""
        for name in (METRICS_FILE, TABLES_FILE):
            # A run that starts at step 0 evaluates again what it logged before its first step.
            truncate_after(self._folder / name, event.step or -1)
        self._resumed_at = event.step
        self._logged_there = frozenset(
            key
            for line in read_metrics(self._folder / METRICS_FILE)
            if line.step == event.step
            for key in line.values
        )

    @hookimpl
    def metrics_logged(self, event: MetricsLogged) -> None:
        """Append one line, unless it is an evaluation that was logged before the restart."""
        clash = _RESERVED & event.metrics.keys()
        if clash:
            raise RunError(f"a metric must not be named {sorted(clash)[0]!r}")
        if event.step == self._resumed_at and event.metrics.keys() <= self._logged_there:
            return
        self._append(METRICS_FILE, {"step": event.step, "time": self._now(), **event.metrics})

    @hookimpl
    def table_logged(self, event: TableLogged) -> None:
        """Append one line with the table's columns and rows."""
        self._append(
            TABLES_FILE,
            {
                "step": event.step,
                "time": self._now(),
                "name": event.name,
                "columns": event.columns,
                "rows": event.rows,
            },
        )

    @hookimpl
    def run_finished(self, event: RunFinished) -> None:  # noqa: ARG002 - the moment is all
        """Close the files."""
        for file in self._files.values():
            os.fsync(file.fileno())
            file.close()
        self._files.clear()

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        if name not in self._files:
            # Unbuffered: a line is one write, so a killed process leaves whole lines but the last.
            self._files[name] = (self._folder / name).open("ab", buffering=0)
        reach("metrics.append")
        self._files[name].write((json.dumps(line) + "\n").encode())


def read_metrics(path: Path) -> list[MetricsLine]:
    """Return the lines of a metrics file, in the order they were written; [] without a file.

    A last line that a killed process left unfinished is left out.

    Raises:
        RunError: a line is not what this module writes; the message has its number.
    """
    rows = enumerate(_rows(path, _content(path)), start=1)
    return [_metrics_line(path, number, row) for number, (_, row) in rows]


def read_last_metrics(path: Path, *, size: int = 65536) -> list[MetricsLine]:
    """Return the lines in the last ``size`` bytes of a metrics file; [] without a file.

    Raises:
        RunError: a line is not what this module writes.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - size)
        file.seek(start)
        data = file.read()
    if start:
        data = data[data.find(b"\n") + 1 :]
    return [_metrics_line(path, None, row) for _, row in _rows(path, data)]


def read_tables(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a tables file: ``step``, ``time``, ``name``, ``columns``, ``rows``.

    Raises:
        RunError: a line is not what this module writes; the message has its number.
    """
    return [row for _, row in _rows(path, _content(path))]


def truncate_after(path: Path, step: int) -> None:
    """Drop lines of steps after ``step``, and an unfinished last line; atomic."""
    if not path.exists():
        return
    data = path.read_bytes()
    kept = b"".join(line for line, row in _rows(path, data) if row["step"] <= step)
    if kept == data:
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    reach("metrics.truncate")
    temporary.replace(path)


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _metrics_line(path: Path, number: int | None, row: Mapping[str, Any]) -> MetricsLine:
    values = {key: value for key, value in row.items() if key not in _RESERVED}
    if not all(type(value) in {int, float} for value in values.values()):
        where = path if number is None else f"{path}:{number}"
        raise RunError(f"{where}: expected numbers, got {row!r:.80}")
    return MetricsLine(row["step"], float(row.get("time", 0.0)), values)


def _rows(path: Path, data: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RunError(f"{path}:{number}: not a line of JSON: {line[:80]!r}") from error
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise RunError(f"{path}:{number}: expected an object with a step, got {line[:80]!r}")
        yield line, row
