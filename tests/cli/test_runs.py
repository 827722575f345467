"""``foundry runs``, ``foundry report`` and ``foundry diff``, as commands."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from foundry_sdk.cli import runs
from foundry_sdk.errors import RunError
from foundry_sdk.runs.record import RunRecord

Invoke = Callable[..., str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two runs of three steps; the second has another rate, and other losses from step 2."""
    for name, lr, losses in [("first", 1e-3, [3.0, 2.0, 1.0]), ("second", 2e-3, [3.0, 2.5, 1.0])]:
        record = RunRecord.open(tmp_path / "runs", name, rank=0, resume=False)
        record.start(
            resolved_spec={"optimizer": {"lr": lr}},
            choices={"attn_impl": "torch"},
            devices={"world_size": 1},
            data={},
            seeds={"seed": 17},
            command=["foundry", "train", "a.yaml"],
        )
        lines = [
            {"step": step, "time": float(step), "loss/train/total": loss, "time/token": 50.0 * step}
            for step, loss in enumerate(losses, start=1)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (record.path / "metrics.jsonl").write_text(text)
        record.finish(status="finished", reason=None, summary={"steps": 3})
        record.release()
    return tmp_path / "runs"


@pytest.fixture
def invoke() -> Invoke:
    app = typer.Typer()
    runs.register(app)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_the_table_has_a_row_for_each_run(root: Path, invoke: Invoke) -> None:
    lines = invoke("runs", str(root)).splitlines()
    assert " ".join(lines[0].split()) == "run status steps loss tokens/s started (UTC) took reason"
    rows = {line.split()[0]: line.split() for line in lines[1:]}
    assert rows["first"][:5] == ["first", "finished", "3", "1.0000", "50"]
    assert set(rows) == {"first", "second"}


def test_runs_as_json(root: Path, invoke: Invoke) -> None:
    found = json.loads(invoke("runs", str(root), "--json"))
    assert {run["name"]: (run["step"], run["loss"]) for run in found} == {
        "first": (3, 1.0),
        "second": (3, 1.0),
    }


def test_an_empty_folder_is_told(tmp_path: Path, invoke: Invoke) -> None:
    assert invoke("runs", str(tmp_path)) == f"no runs under {tmp_path}\n"


def test_report_by_name(root: Path, invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("report", "first", "--root", str(root)) == (
        f"wrote {root / 'first' / 'report.html'}\n"
    )
    invoke("report", str(root / "first"), "--out", str(tmp_path / "x.html"))
    assert "<svg" in (tmp_path / "x.html").read_text()


def test_diff_names_what_differs(root: Path, invoke: Invoke) -> None:
    text = invoke("diff", "first", "second", "--root", str(root))
    assert [line.split() for line in text.splitlines() if line.startswith("optimizer.lr")] == [
        ["optimizer.lr", "0.001", "0.002"]
    ]
    assert "versions, data, devices: no difference" in text
    assert "differs from step 2 on, by at most 0.5 (step 2); 3 common steps" in text


def test_diff_of_a_run_with_itself(root: Path, invoke: Invoke) -> None:
    text = invoke("diff", "first", "first", "--root", str(root))
    assert text.count("no difference") == 3
    assert "the same bits at all 3 common steps" in text


def test_diff_as_json(root: Path, invoke: Invoke) -> None:
    found = json.loads(invoke("diff", "first", "second", "--root", str(root), "--json"))
    assert found["spec"] == [{"path": "optimizer.lr", "first": 0.001, "second": 0.002}]
    assert found["loss"] == {
        "common_steps": 3,
        "first_step": 2,
        "largest": 0.5,
        "largest_step": 2,
    }


def test_a_misspelt_name_is_told(root: Path, invoke: Invoke) -> None:
    with pytest.raises(RunError, match="did you mean second"):
        invoke("diff", "first", "secnod", "--root", str(root))
