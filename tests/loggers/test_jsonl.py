"""metrics.jsonl: exact numbers, and a continuous curve after a resume."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foundry_sdk.errors import RunError
from foundry_sdk.events import MetricsLogged, RunFinished, TableLogged
from foundry_sdk.loggers.jsonl import JsonlLogger, read_metrics, read_tables

END = RunFinished(step=0, seconds=0.0, stopped_by=None)


def begin(folder: Path, step: int = 0) -> JsonlLogger:
    logger = JsonlLogger(folder, now=lambda: 12.5)
    event: Any = SimpleNamespace(step=step)
    logger.run_started(event)
    return logger


def log(logger: JsonlLogger, step: int, **metrics: float) -> None:
    logger.metrics_logged(MetricsLogged(step=step, metrics=metrics))


def test_a_line_is_one_object(tmp_path: Path) -> None:
    logger = begin(tmp_path)
    logger.metrics_logged(MetricsLogged(step=3, metrics={"loss/train/total": 10.5, "n": 2}))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 3, "time": 12.5, "loss/train/total": 10.5, "n": 2}\n'


def test_floats_read_back_to_the_last_bit(tmp_path: Path) -> None:
    generator = random.Random(0)  # noqa: S311 - no secret
    values = [generator.uniform(-1, 1) * 10.0 ** generator.randint(-300, 300) for _ in range(200)]
    values += [5e-324, 0.1 + 0.2, 1e16, math.inf, -math.inf, -0.0]
    logger = begin(tmp_path)
    for step, value in enumerate(values):
        log(logger, step, x=value)
    read = [line.values["x"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert [value.hex() for value in read] == [value.hex() for value in values]
    log(logger, 1000, x=math.nan)
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[-1].values["x"])


def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    uninterrupted = begin(whole)
    for step in range(1, 11):
        log(uninterrupted, step, x=1 / step)
    first = begin(broken)
    for step in range(1, 8):
        log(first, step, x=1 / step)
    # The checkpoint is of step 5; the process is killed while it writes step 8.
    with (broken / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 8, "ti')
    second = begin(broken, step=5)
    for step in range(6, 11):
        log(second, step, x=1 / step)
    second.run_finished(END)
    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_an_unfinished_last_line_goes_even_if_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 0, "x": 1.0}\n{"step": 2')
    log(begin(tmp_path, step=5), 6, x=2.0)
    assert [line.step for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 6]


def test_an_evaluation_that_is_made_again_is_not_logged_again(tmp_path: Path) -> None:
    first = begin(tmp_path)
    log(first, 0, evaluation=3.0)
    first.run_finished(END)
    second = begin(tmp_path)
    log(second, 0, evaluation=3.0)
    log(second, 5, x=1.0)
    log(second, 5, evaluation=2.0)
    third = begin(tmp_path, step=5)
    log(third, 5, evaluation=2.0)
    log(third, 5, other=1.0)
    log(third, 6, x=0.5)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line.step, dict(line.values)) for line in lines] == [
        (0, {"evaluation": 3.0}),
        (5, {"x": 1.0}),
        (5, {"evaluation": 2.0}),
        (5, {"other": 1.0}),
        (6, {"x": 0.5}),
    ]


def test_tables_are_kept_and_truncated_alike(tmp_path: Path) -> None:
    logger = begin(tmp_path)
    for step in (1, 2):
        rows = (("a prompt", "an answer\nwith “quotes”"),)
        table = TableLogged(step=step, name="generations", columns=("p", "g"), rows=rows)
        logger.table_logged(table)
    logger.run_finished(END)
    begin(tmp_path, step=1)
    (table_row,) = read_tables(tmp_path / "tables.jsonl")
    assert table_row["rows"] == [["a prompt", "an answer\nwith “quotes”"]]
    assert (table_row["step"], table_row["columns"]) == (1, ["p", "g"])


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("bad", ["not json\n", "[1]\n", '{"time": 1.0}\n', '{"step": 1.5}\n'])
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, bad: str) -> None:
    good = json.dumps({"step": 1, "time": 0.0, "x": 1.0}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(good + bad + good)
    with pytest.raises(RunError, match=r"metrics\.jsonl:2: "):
        read_metrics(tmp_path / "metrics.jsonl")


def test_values_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 0.0, "x": "high"}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:1: expected numbers"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_reserved_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="'time'"):
        log(begin(tmp_path), 1, time=1.0)
