"""``list_runs`` and ``find_run`` over folders made by hand."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from foundry_sdk.errors import RunError
from foundry_sdk.loggers.jsonl import read_last_metrics, read_metrics
from foundry_sdk.runs.listing import find_run, list_runs
from foundry_sdk.runs.record import RunRecord

MakeRecord = Callable[..., Path]


def edit(path: Path, **changes: object) -> None:
    run = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(run | changes))


def test_a_finished_run(make_record: MakeRecord) -> None:
    path = make_record("a")
    edit(path, started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:01:30+00:00")
    (run,) = list_runs(path.parent)
    assert (run.name, run.status, run.reason) == ("a", "finished", None)
    assert (run.step, run.loss, run.tokens_per_second) == (10, 0.5, 410.0)
    assert run.seconds == 90.0
    assert run.plain()["started"] == "2026-01-01T00:00:00+00:00"


def test_the_latest_start_comes_first_whatever_the_files_say(make_record: MakeRecord) -> None:
    for name, day in [("a", 2), ("b", 3), ("c", 1)]:
        edit(make_record(name), started=f"2026-01-0{day}T00:00:00+00:00")
    root = make_record("d").parent
    edit(root / "d", started="2025-01-01T00:00:00+00:00")
    assert [run.name for run in list_runs(root)] == ["b", "a", "c", "d"]


def test_a_run_without_a_process_has_died(make_record: MakeRecord, tmp_path: Path) -> None:
    path = make_record("a", status=None)
    edit(path, started="2026-01-01T00:00:00+00:00")
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=1)
    (run,) = list_runs(path.parent, now=now)
    assert (run.status, run.seconds) == ("died", 3600.0)
    holder = RunRecord.open(tmp_path / "runs", "a", rank=0, resume=True)
    assert list_runs(path.parent)[0].status == "running"
    holder.release()


def test_other_folders_are_not_listed_and_broken_records_are(make_record: MakeRecord) -> None:
    path = make_record("a")
    (path.parent / "notes").mkdir()
    (path / "run.json").write_text("{")
    (run,) = list_runs(path.parent)
    assert run.status == "unreadable"
    assert "run.json" in (run.reason or "")


def test_speed_without_a_speed_monitor_is_that_of_the_last_lines(make_record: MakeRecord) -> None:
    path = make_record("a")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("throughput/tokens_per_sec", None)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # 40 tokens and one second a step.
    assert list_runs(path.parent)[0].tokens_per_second == pytest.approx(40.0)


def test_the_last_lines_are_those_of_the_whole(make_record: MakeRecord) -> None:
    path = make_record("a") / "metrics.jsonl"
    whole = read_metrics(path)
    for size in (10, 200, 500, 10_000):
        last = read_last_metrics(path, size=size)
        assert last == whole[len(whole) - len(last) :]
    assert read_last_metrics(path) == whole


def test_a_run_is_found_by_folder_and_by_name(make_record: MakeRecord) -> None:
    path = make_record("gpt-small")
    assert find_run(str(path)) == path
    assert find_run("gpt-small", root=path.parent) == path
    with pytest.raises(RunError, match="did you mean gpt-small"):
        find_run("gtp-small", root=path.parent)
    with pytest.raises(RunError, match="holds no run"):
        find_run(str(path.parent))


def test_a_missing_root_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no folder of runs"):
        list_runs(tmp_path / "nowhere")
