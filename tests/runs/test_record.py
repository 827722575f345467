"""The run's folder: what is in it, who may use it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from foundry_sdk.errors import LockedRunError, RunError
from foundry_sdk.loggers.jsonl import METRICS_FILE
from foundry_sdk.runs.record import RunRecord, read_run

SPEC = {
    "model": {"name": "mpt_causal_lm", "betas": (0.9, 0.95)},
    "optimizer": {"name": "decoupled_adamw", "lr": 1e-4},
    "loggers": {"wandb": {"api_key": "canary-in-spec"}},
    "variables": {"on": "yes", "date": "2026-11-24"},
}


def start(record: RunRecord, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "resolved_spec": SPEC,
        "choices": {"attention": "flash"},
        "devices": {"world_size": 2, "name": "cpu"},
        "data": {"train": {"digest": "abc", "path": Path("/data/train")}},
        "seeds": {"run": 17},
        "command": ["foundry", "train", "a.yaml", "loggers.wandb.api_key=canary-in-command"],
    }
    record.start(**arguments | changes)


@pytest.fixture
def record(tmp_path: Path) -> Iterator[RunRecord]:
    opened = RunRecord.open(tmp_path, "a", rank=0, resume=False)
    yield opened
    opened.release()


def test_start_writes_what_the_run_is_made_from(record: RunRecord) -> None:
    start(record)
    run = json.loads((record.path / "run.json").read_text())
    assert run["status"] == "running"
    assert run["choices"] == {"attention": "flash"}
    assert run["seeds"] == {"run": 17}
    assert run["data"]["train"] == {"digest": "abc", "path": "/data/train"}
    (attempt,) = run["attempts"]
    assert attempt["host"]["pid"] == os.getpid()
    assert attempt["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert attempt["command"][:3] == ["foundry", "train", "a.yaml"]


def test_the_spec_reads_back_apart_from_its_secrets(record: RunRecord) -> None:
    start(record)
    read = YAML(typ="safe").load(record.path / "spec.yaml")
    assert read["loggers"] == {"wandb": {"api_key": "<redacted>"}}
    assert list(read) == list(SPEC)
    assert read["optimizer"] == {"name": "decoupled_adamw", "lr": 1e-4}
    assert read["model"]["betas"] == [0.9, 0.95]
    assert read["variables"] == {"on": "yes", "date": "2026-11-24"}


def test_no_file_has_a_secret(record: RunRecord) -> None:
    start(record)
    record.finish(status="failed", reason="login with password=canary-in-reason", summary={})
    for file in record.path.iterdir():
        assert b"canary" not in file.read_bytes(), file


def test_git_state_is_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    (repository / "a.txt").write_text("a")
    git("add", "a.txt")
    git("commit", "-qm", "a")
    (repository / "a.txt").write_text("b")
    record = RunRecord.open(tmp_path / "runs", "a", rank=0, resume=False)
    start(record)
    record.release()
    run = read_run(record.path)
    assert run is not None
    state = run["attempts"][0]["git"]
    assert (state["commit"], state["dirty"]) == (git("rev-parse", "HEAD"), True)


def test_finish_keeps_the_end_and_plots_the_loss(record: RunRecord) -> None:
    start(record)
    lines = [{"step": i, "time": 0.0, "loss/train/total": 3.0 / i} for i in range(1, 5)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (record.path / METRICS_FILE).write_text(text)
    record.finish(status="stopped", reason="early_stopper", summary={"steps": 4, "loss": 0.75})
    run = read_run(record.path)
    assert run is not None
    assert (run["status"], run["reason"]) == ("stopped", "early_stopper")
    assert run["summary"] == {"steps": 4, "loss": 0.75}
    assert run["attempts"][0]["status"] == "stopped"
    assert run["finished"] >= run["started"]
    assert (record.path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_finish_without_metrics_leaves_no_plot(record: RunRecord) -> None:
    start(record)
    record.finish(status="failed", reason="no data", summary={})
    assert not (record.path / "loss.png").exists()


def test_other_ranks_touch_nothing(tmp_path: Path) -> None:
    record = RunRecord.open(tmp_path / "runs", "a", rank=1, resume=False)
    start(record)
    record.finish(status="finished", reason=None, summary={})
    record.release()
    assert record.path == tmp_path / "runs" / "a"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_run_is_refused_unless_resumed(tmp_path: Path) -> None:
    first = RunRecord.open(tmp_path, "a", rank=0, resume=False)
    start(first)
    first.finish(status="interrupted", reason="SIGTERM", summary={})
    first.release()
    with pytest.raises(RunError, match=r"already holds a run \(interrupted"):
        RunRecord.open(tmp_path, "a", rank=0, resume=False)
    second = RunRecord.open(tmp_path, "a", rank=0, resume=True)
    start(second, resolved_spec={**SPEC, "seed": 18})
    second.finish(status="finished", reason=None, summary={})
    second.release()
    run = read_run(tmp_path / "a")
    assert run is not None
    assert [attempt["status"] for attempt in run["attempts"]] == ["interrupted", "finished"]
    assert run["status"] == "finished"
    assert YAML(typ="safe").load(tmp_path / "a" / "spec.yaml")["seed"] == 18
    assert "seed" not in YAML(typ="safe").load(tmp_path / "a" / "spec.attempt-1.yaml")


def test_an_attempt_that_never_ended_has_died(tmp_path: Path) -> None:
    for _ in range(2):
        record = RunRecord.open(tmp_path, "a", rank=0, resume=True)
        start(record)
        record.release()
    run = read_run(record.path)
    assert run is not None
    assert [attempt["status"] for attempt in run["attempts"]] == ["died", "running"]


def test_what_is_known_of_the_data_at_the_end_is_kept(record: RunRecord) -> None:
    start(record)
    data = {"train": {"share": 0.25, "path": Path("/data/train")}}
    record.finish(status="finished", reason=None, summary={}, data=data)
    run = read_run(record.path)
    assert run is not None
    assert run["data"] == {"train": {"share": 0.25, "path": "/data/train"}}


def test_what_a_failed_start_leaves_is_no_run(tmp_path: Path) -> None:
    RunRecord.open(tmp_path, "a", rank=0, resume=False).release()
    for left in ("checkpoints/.lock", "cache/train/shard.00000.mds"):
        (tmp_path / "a" / left).parent.mkdir(parents=True)
        (tmp_path / "a" / left).write_text("x")
    RunRecord.open(tmp_path, "a", rank=0, resume=False).release()
    (tmp_path / "a" / "checkpoints" / "weights").write_text("x")
    with pytest.raises(RunError, match="found checkpoints/weights"):
        RunRecord.open(tmp_path, "a", rank=0, resume=False)


def test_a_refused_folder_is_not_left_locked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        RunRecord.open(tmp_path, "a", rank=0, resume=False)
    RunRecord.open(tmp_path, "a", rank=0, resume=True).release()


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "a\\b", "a\0b", "~root"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="one folder name"):
        RunRecord.open(tmp_path, name, rank=0, resume=False)


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="choose another run_root"):
        RunRecord.open(tmp_path / "runs", "a", rank=0, resume=False)


def test_a_broken_run_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 99}')
    with pytest.raises(RunError, match="schema 1, got 99"):
        read_run(tmp_path)


def test_an_unknown_status_is_refused(record: RunRecord) -> None:
    start(record)
    with pytest.raises(RunError, match="'done'"):
        record.finish(status="done", reason=None, summary={})  # type: ignore[arg-type]


def process(root: Path, body: str) -> "subprocess.Popen[str]":
    """Open the run in another process, say so, run ``body``, then wait for a line."""
    code = f"""
        import os, sys
        from pathlib import Path
        from foundry_sdk.runs.record import RunRecord
        record = RunRecord.open(Path({str(root)!r}), "a", rank=0, resume=True)
        {body}
        print("ready", flush=True)
        sys.stdin.readline()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    return other


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    other = process(tmp_path, "")
    with pytest.raises(LockedRunError, match=rf"process {other.pid} on host {os.uname().nodename}"):
        RunRecord.open(tmp_path, "a", rank=0, resume=True)
    other.communicate("go\n")
    RunRecord.open(tmp_path, "a", rank=0, resume=True).release()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    other = process(tmp_path, "")
    other.kill()
    other.communicate()
    RunRecord.open(tmp_path, "a", rank=0, resume=True).release()


def test_a_worker_that_outlives_a_killed_run_does_not_hold_the_lock(tmp_path: Path) -> None:
    worker = """
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            import time
            os.close(1)
            os.write(writing, b"x")
            time.sleep(600)
            os._exit(0)
        os.read(reading, 1)
        (Path(record.path) / "worker").write_text(str(child))
    """
    other = process(tmp_path, worker.strip())
    child = int((tmp_path / "a" / "worker").read_text())
    with pytest.raises(LockedRunError):
        RunRecord.open(tmp_path, "a", rank=0, resume=True)
    other.kill()
    other.communicate()
    try:
        RunRecord.open(tmp_path, "a", rank=0, resume=True).release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_of_processes_started_at_once_one_wins(tmp_path: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from foundry_sdk.errors import RunError
        from foundry_sdk.runs.record import RunRecord
        sys.stdin.readline()
        try:
            record = RunRecord.open(Path({str(tmp_path)!r}), "a", rank=0, resume=True)
        except RunError as error:
            print(type(error).__name__, flush=True)
        else:
            print("won", flush=True)
        sys.stdin.readline()
    """
    others = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for other in others:
        assert other.stdin is not None
        other.stdin.write("go\n")
        other.stdin.flush()
    answers = [other.stdout.readline().strip() for other in others if other.stdout]
    for other in others:
        other.communicate("end\n")
    assert sorted(answers) == ["LockedRunError"] * 3 + ["won"]
