"""Runs under a folder: which there are, how they are doing."""

import difflib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk.errors import RunError, RunFolderError
from foundry_sdk.lock import is_locked
from foundry_sdk.loggers.jsonl import METRICS_FILE, MetricsLine, read_last_metrics
from foundry_sdk.runs.plot import TRAIN_LOSS
from foundry_sdk.runs.record import LOCK_FILE, RUN_FILE, read_run

TOKENS_PER_SECOND: Final = "throughput/tokens_per_sec"
_TOKENS: Final = "time/token"


@attrs.frozen(kw_only=True)
class RunSummary:
    """One line of ``foundry runs``.

    Attributes:
        name: of the run and its folder.
        path: its folder.
        status: as recorded; ``died`` where it says running but no process holds the folder, and
            ``unreadable`` where the record can't be read.
        reason: why it ended early, or can't be read.
        step: of the last logged metrics, or the recorded number of steps.
        loss: the last logged training loss, nats per token.
        tokens_per_second: the last logged throughput, or that between the last logged steps.
        started: when the first attempt began (UTC).
        seconds: from then to the recorded end, or to now.
    """

    name: str
    path: Path
    status: str
    reason: str | None = None
    step: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    started: datetime | None = None
    seconds: float | None = None

    def plain(self) -> dict[str, Any]:
        """Return JSON values."""
        values = attrs.asdict(self)
        started = None if self.started is None else self.started.isoformat()
        return values | {"path": str(self.path), "started": started}


def list_runs(root: Path, *, now: datetime | None = None) -> list[RunSummary]:
    """Return the runs directly under ``root``, the latest start first.

    Raises:
        RunFolderError: ``root`` is no folder.
    """
    if not root.is_dir():
        raise RunFolderError(f"{root} is no folder of runs; runs are kept under run_root (runs/)")
    folders = [path for path in sorted(root.iterdir()) if (path / RUN_FILE).is_file()]
    moment = now or datetime.now(UTC)
    summaries = [summarize(path, now=moment) for path in folders]
    beginning = datetime.min.replace(tzinfo=UTC)
    return sorted(summaries, key=lambda summary: summary.started or beginning, reverse=True)


def summarize(path: Path, *, now: datetime) -> RunSummary:
    """Return what the folder of one run says; a folder that can't be read is ``unreadable``."""
    try:
        run = read_run(path)
        lines = read_last_metrics(path / METRICS_FILE)
    except RunError as error:
        return RunSummary(name=path.name, path=path, status="unreadable", reason=str(error))
    if run is None:
        return RunSummary(name=path.name, path=path, status="unreadable", reason="no run.json")
    status = run["status"]
    if status == "running" and not is_locked(path / LOCK_FILE):
        status = "died"
    started = datetime.fromisoformat(run["started"])
    ended = datetime.fromisoformat(run["finished"]) if run["finished"] else now
    return RunSummary(
        name=path.name,
        path=path,
        status=status,
        reason=run["reason"],
        step=lines[-1].step if lines else run["summary"].get("steps"),
        loss=_last(lines, TRAIN_LOSS),
        tokens_per_second=_speed(lines, run["summary"]),
        started=started,
        seconds=max(0.0, (ended - started).total_seconds()),
    )


def find_run(text: str, *, root: Path = Path("runs")) -> Path:
    """Return the folder of a run that is named by its folder, or by its name under ``root``.

    Raises:
        RunFolderError: there is none; the message has the nearest names.
    """
    for path in (Path(text), root / text):
        if (path / RUN_FILE).is_file():
            return path
    if Path(text).is_dir():
        raise RunFolderError(f"{text} holds no run: it has no {RUN_FILE}")
    names = [path.parent.name for path in root.glob(f"*/{RUN_FILE}")] if root.is_dir() else []
    near = difflib.get_close_matches(text, names, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise RunFolderError(f"no run {text!r}, neither as a folder nor under {root}{hint}")


def _last(lines: list[MetricsLine], key: str) -> float | None:
    return next((line.values[key] for line in reversed(lines) if key in line.values), None)


def _speed(lines: list[MetricsLine], summary: Mapping[str, Any]) -> float | None:
    logged = _last(lines, TOKENS_PER_SECOND)
    if logged is not None:
        return logged
    counted = [line for line in lines if _TOKENS in line.values]
    if len(counted) > 1:
        seconds = counted[-1].time - counted[0].time
        tokens = counted[-1].values[_TOKENS] - counted[0].values[_TOKENS]
        # Two attempts, or a clock that was set back, are no measure.
        if seconds > 0 and tokens > 0:
            return tokens / seconds
    recorded = [summary.get(key) for key in ("tokens", "seconds")]
    return recorded[0] / recorded[1] if recorded[0] and recorded[1] else None
