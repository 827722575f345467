"""A run's folder: whose it is, what it was made from, how it went."""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, Final, Literal, get_args

from foundry_sdk.errors import RunError, RunFolderError
from foundry_sdk.faultpoints import reach
from foundry_sdk.lock import FolderLock
from foundry_sdk.runs.machine import git_state, host_facts, package_versions
from foundry_sdk.runs.redact import redact

_log = logging.getLogger(__name__)

SPEC_FILE: Final = "spec.yaml"
RUN_FILE: Final = "run.json"
LOSS_PLOT: Final = "loss.png"
LOCK_FILE: Final = "run.lock"
_SCHEMA: Final = 1
_LOCKS: Final = frozenset({LOCK_FILE, ".lock"})
_CACHE: Final = "cache"

RunStatus = Literal["finished", "stopped", "failed", "interrupted"]


class RunRecord:
    """Writes ``spec.yaml``, ``run.json`` and ``loss.png`` into the run's folder, which it locks.

    Each start of the run is an *attempt*; one that is resumed has several. Only rank 0 writes;
    on the other ranks the same calls do nothing.
    """

    def __init__(self, path: Path, lock: FolderLock | None) -> None:
        """Use ``open`` instead, which checks the folder and takes the lock."""
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, root: Path, name: str, *, rank: int, resume: bool) -> "RunRecord":
        """Make or enter the folder ``root/name`` and lock it until ``release``.

        Args:
            root: where runs are kept; made if missing.
            name: the run's name, one folder name.
            rank: only 0 touches the disk.
            resume: enter a folder that already holds a run.

        Raises:
            LockedRunError: another process is using the folder; the message names it.
            RunFolderError: the name is no folder name, the folder can't be written, or it holds
                something and ``resume`` is false.
        """
        path = root / _checked_name(name)
        if rank != 0:
            return cls(path, None)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = FolderLock.take(path / LOCK_FILE)
        except OSError as error:
            raise RunFolderError(
                f"cannot write the run's folder {path}: {error.strerror}; choose another run_root"
            ) from error
        try:
            if not resume:
                _refuse_content(path)
        except RunError:
            lock.release()
            raise
        return cls(path, lock)

    def start(
        self,
        *,
        resolved_spec: Mapping[str, Any],
        choices: Mapping[str, str],
        devices: Mapping[str, Any],
        data: Mapping[str, Any],
        seeds: Mapping[str, Any],
        command: Sequence[str],
    ) -> None:
        """Write down what this attempt runs, on what, with which versions; status ``running``.

        Secrets are redacted. The spec of an earlier attempt, where it differs, is kept as
        ``spec.attempt-N.yaml``.

        Args:
            resolved_spec: the whole spec as plain values.
            choices: what was chosen for the user, by option.
            devices: world size, device names and the like.
            data: digests and sizes of the data, by loader.
            seeds: every seed in use.
            command: the command line, program first.
        """
        if self._lock is None:
            return
        run = read_run(self.path) or {
            "schema": _SCHEMA,
            "name": self.path.name,
            "started": _now(),
            "attempts": [],
        }
        _write_spec(self.path, redact(_plain(resolved_spec)), attempts=len(run["attempts"]))
        attempt = {
            "started": _now(),
            "finished": None,
            "status": "running",
            "reason": None,
            "command": redact(list(command)),
            "host": host_facts(),
            "versions": package_versions(),
            "git": git_state(Path.cwd()),
        }
        for earlier in run["attempts"]:
            if earlier["status"] == "running":  # and yet the folder was free
                earlier["status"] = "died"
        run |= {
            "status": "running",
            "reason": None,
            "finished": None,
            "devices": redact(_plain(devices)),
            "data": redact(_plain(data)),
            "seeds": _plain(seeds),
            "choices": redact(_plain(choices)),
            "summary": {},
            "attempts": [*run["attempts"], attempt],
        }
        _write_json(self.path / RUN_FILE, run)

    def finish(
        self,
        *,
        status: RunStatus,
        reason: str | None,
        summary: Mapping[str, float | int | str],
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Write down how the run ended, and plot its loss.

        Args:
            status: ``finished`` after the whole duration, ``stopped`` where something asked for
                it, ``failed`` after an error, ``interrupted`` by a signal.
            reason: why it did not finish.
            summary: the last numbers: steps, tokens, loss and so on.
            data: what there is to say of the data now, such as the share that each stream had;
                None leaves what ``start`` wrote.

        Raises:
            RunError: ``start`` was not called, or ``status`` is none of the four.
        """
        if status not in get_args(RunStatus):
            raise RunError(f"status {status!r}: expected one of {', '.join(get_args(RunStatus))}")
        if self._lock is None:
            return
        run = read_run(self.path)
        if run is None:
            raise RunError(f"{self.path}: finish() before start()")
        ended = {"status": status, "reason": redact(reason), "finished": _now()}
        run |= {**ended, "summary": redact(_plain(summary))}
        run["attempts"][-1] |= ended
        if data is not None:
            run["data"] = redact(_plain(data))
        _write_json(self.path / RUN_FILE, run)
        self._plot()

    def release(self) -> None:
        """Let other processes use the folder; calling it again does nothing."""
        if self._lock is not None:
            self._lock.release()

    def _plot(self) -> None:
        from foundry_sdk.loggers.jsonl import METRICS_FILE
        from foundry_sdk.runs.plot import plot_loss

        try:
            plot_loss(self.path / METRICS_FILE, self.path / LOSS_PLOT)
        except ModuleNotFoundError as error:
            # A picture that can't be drawn must not turn a finished run into a failed one.
            _log.warning("no %s: %s; pip install matplotlib", LOSS_PLOT, error)


def read_run(path: Path) -> dict[str, Any] | None:
    """Return the content of a run folder's ``run.json``; None where there is none.

    Raises:
        RunFolderError: the file is not what ``RunRecord`` writes.
    """
    file = path / RUN_FILE
    try:
        run = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise RunFolderError(f"{file}: cannot be read: {error}") from error
    if not isinstance(run, dict) or run.get("schema") != _SCHEMA:
        found = run.get("schema") if isinstance(run, dict) else type(run).__name__
        raise RunFolderError(f"{file}: expected a run record of schema {_SCHEMA}, got {found!r}")
    return run


def _checked_name(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name or "\\" in name or "\0" in name or name[0] == "~":
        raise RunFolderError(f"run_name {name!r}: expected one folder name, without '/' and '..'")
    return name


def _refuse_content(path: Path) -> None:
    run = read_run(path)
    if run is not None:
        raise RunFolderError(
            f"{path} already holds a run ({run['status']}, started {run['started']}); choose "
            "another run_name, resume it with autoresume: true, or remove the folder"
        )
    # A start that failed before the run's record leaves locks and copies of data behind.
    others = sorted(
        str(found.relative_to(path))
        for entry in path.iterdir()
        if entry.name != _CACHE
        for found in (entry, *entry.rglob("*"))
        if not found.is_dir() and found.name not in _LOCKS
    )
    if others:
        raise RunFolderError(
            f"{path} is not empty and holds no run (found {', '.join(others[:3])}); choose another "
            "run_name or empty it"
        )


def _write_spec(path: Path, spec: Mapping[str, Any], *, attempts: int) -> None:
    from ruamel.yaml import YAML

    text = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(spec, text)
    file = path / SPEC_FILE
    if file.exists():
        if file.read_text("utf-8") == text.getvalue():
            return
        shutil.copyfile(file, path / f"spec.attempt-{max(attempts, 1)}.yaml")
    _write_text(file, text.getvalue())


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value of a spec
    """Turn what YAML and JSON don't know (tuples, paths, enums, durations) into what they do."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if value is None or type(value) in {bool, int, float, str}:
        return value
    return str(value)


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    _write_text(file, json.dumps(_plain(value), indent=2) + "\n")


def _write_text(file: Path, text: str) -> None:
    temporary = file.with_name(f"{file.name}.tmp")
    reach("record.write")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        reach("record.fsync")
        os.fsync(stream.fileno())
    reach("record.rename")
    temporary.replace(file)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
