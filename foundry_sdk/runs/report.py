"""One self-contained HTML page about a run: no script, no font, no picture from elsewhere."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from foundry_sdk.checkpoint.layout import read_manifest, step_folders
from foundry_sdk.errors import CheckpointError, RunError, RunFolderError
from foundry_sdk.loggers.jsonl import (
    METRICS_FILE,
    TABLES_FILE,
    MetricsLine,
    read_metrics,
    read_tables,
)
from foundry_sdk.runs.diff import is_parameter_norm, last_values
from foundry_sdk.runs.listing import RunSummary, summarize
from foundry_sdk.runs.plot import Curve, curve, draw, loss_curves
from foundry_sdk.runs.record import SPEC_FILE, read_run

_STYLE: Final = "report.css"
_CHECKPOINTS: Final = "checkpoints"
_TABLES_SHOWN: Final = 5


def write_report(path: Path, out: Path) -> Path:
    """Write the page about the run in the folder ``path`` to the file ``out``; return it.

    Raises:
        RunError: the folder holds no run, or the file can't be written.
    """
    page = render_report(path)
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror}") from error
    return out


def render_report(path: Path) -> str:
    """Return the page about the run in the folder ``path``.

    Raises:
        RunError: the folder holds no run.
    """
    run = read_run(path)
    if run is None:
        raise RunFolderError(f"{path} holds no run: it has no run.json")
    lines = read_metrics(path / METRICS_FILE)
    summary = summarize(path, now=datetime.now(UTC))
    attempt = run["attempts"][-1]
    spec = (path / SPEC_FILE).read_text("utf-8") if (path / SPEC_FILE).exists() else ""
    parts = [
        f"<h1>{escape(run['name'])}</h1>",
        _overview(run, summary),
        _section("Curves", _pictures(lines)),
        _section("Chosen for you", _pairs(run["choices"])),
        _section(
            "Last values",
            _pairs({k: v for k, v in last_values(lines).items() if not is_parameter_norm(k)}),
        ),
        _section("Tables", _tables(path)),
        _section("Checkpoints", _checkpoints(path)),
        _section("Data", _pairs(_flat(run["data"]))),
        _section("Devices and seeds", _pairs(_flat({**run["devices"], **run["seeds"]}))),
        _section("Versions", _pairs({**attempt["versions"], **_git(attempt["git"])})),
        _section("Attempts", _attempts(run["attempts"])),
        _section("Spec", f"<pre>{escape(spec)}</pre>" if spec else ""),
    ]
    style = files("foundry_sdk.runs").joinpath(_STYLE).read_text("utf-8")
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(run['name'])}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _overview(run: Mapping[str, Any], summary: RunSummary) -> str:
    rows: dict[str, Any] = {
        "status": summary.status if not run["reason"] else f"{summary.status}: {run['reason']}",
        "started": run["started"],
        "finished": run["finished"] or "",
        "folder": summary.path,
        "steps": summary.step,
        "training loss": summary.loss,
        "tokens per second": summary.tokens_per_second,
        "attempts": len(run["attempts"]),
        "host": run["attempts"][-1]["host"]["name"],
    }
    return _pairs({key: value for key, value in rows.items() if value not in {None, ""}})


def _pictures(lines: Sequence[MetricsLine]) -> str:
    keys = dict.fromkeys(key for line in lines for key in line.values)
    figures: list[tuple[str, str, Mapping[str, Curve]]] = [
        ("Loss", "nats per token", loss_curves(lines)),
        ("Learning rate", "", _curves(lines, [key for key in keys if key.startswith("lr-")])),
        ("Gradient norm", "before clipping", _curves(lines, ["l2_norm/grad/global"])),
        ("Throughput", "tokens per second", _curves(lines, ["throughput/tokens_per_sec"])),
        ("Utilization", "MFU", _curves(lines, ["throughput/device/mfu"])),
        ("Waiting for data", "share of time", _curves(lines, ["throughput/data_wait_share"])),
        (
            "Memory",
            "GB",
            _curves(lines, [key for key in keys if key.startswith("memory/peak_")]),
        ),
        (
            "Evaluation",
            "",
            _curves(lines, [key for key in keys if _is_other_eval_metric(key)]),
        ),
    ]
    drawn = [
        f"<figure>{_svg(curves, title, label)}</figure>"
        for title, label, curves in figures
        if curves
    ]
    return f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def _is_other_eval_metric(key: str) -> bool:
    # The eval loss stands beside the training loss.
    return key.startswith("metrics/eval") and not key.endswith("LanguageCrossEntropy")


def _curves(lines: Sequence[MetricsLine], keys: Iterable[str]) -> dict[str, Curve]:
    curves = {key: curve(lines, key) for key in keys}
    return {key: points for key, points in curves.items() if points[0]}


def _svg(curves: Mapping[str, Curve], title: str, label: str) -> str:
    picture = draw(curves, title=title, ylabel=label, form="svg").decode()
    # Inside HTML there is neither an XML declaration nor a DOCTYPE.
    return picture[picture.index("<svg") :]


def _tables(path: Path) -> str:
    tables = read_tables(path / TABLES_FILE)[-_TABLES_SHOWN:]
    return "".join(
        f"<h3>{escape(table['name'])} at step {table['step']}</h3>"
        f"{_table(table['columns'], table['rows'])}"
        for table in reversed(tables)
    )


def _checkpoints(path: Path) -> str:
    rows = []
    for step, folder in step_folders(_checkpoint_folder(path)):
        try:
            manifest = read_manifest(folder)
        except CheckpointError as error:
            rows.append((str(step), str(folder), str(error)))
            continue
        size = sum(entry.size for entry in manifest.files.values())
        rows.append((str(step), str(folder), f"{size / 1e6:,.1f} MB"))
    return _table(("step", "folder", "size"), rows) if rows else ""


def _checkpoint_folder(path: Path) -> Path:
    from ruamel.yaml import YAML

    file = path / SPEC_FILE
    spec = YAML(typ="safe", pure=True).load(file.read_text("utf-8")) if file.exists() else {}
    folder = spec.get("save_folder") if isinstance(spec, dict) else None
    if folder is None or "://" in folder:  # its copies on this machine are the run's
        return path / _CHECKPOINTS
    return Path(folder)


def _attempts(attempts: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            attempt["started"],
            attempt["finished"] or "",
            attempt["status"],
            attempt["reason"] or "",
            " ".join(attempt["command"]),
        )
        for attempt in attempts
    ]
    return _table(("started", "finished", "status", "reason", "command"), rows)


def _git(git: Mapping[str, Any] | None) -> dict[str, str]:
    if git is None:
        return {}
    changed = " with changes" if git["dirty"] else ""
    return {"git": f"{git['commit']} ({git['branch']}){changed}"}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>\n{content}" if content else ""


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(key))}</th><td>{escape(_text(value))}</td></tr>"
        for key, value in values.items()
    )
    return f"<table>{rows}</table>" if rows else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _text(value: Any) -> str:  # noqa: ANN401 - any plain value
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, list) else str(value)
