"""What a run prints: the lines to the letter, and nothing garbled on a terminal."""

import io
import math
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from foundry_sdk.events import (
    EvaluationFinished,
    EvaluationStarted,
    MetricsLogged,
    RunFinished,
    RunStarted,
    StepFinished,
    TableLogged,
)
from foundry_sdk.loggers.console import ConsoleLogger
from foundry_sdk.units import Duration

MakeRun = Callable[..., RunStarted]


def step(number: int, **changes: Any) -> StepFinished:
    fields: dict[str, Any] = {
        "step": number, "epoch": number // 5, "batch_in_epoch": number % 5, "samples": 4 * number,
        "tokens": 40 * number, "step_samples": 4, "step_tokens": 40, "step_labels": 36,
        "loss": 10.9736, "gradient_norm": 1.0, "lrs": (1e-3,), "optimizer": "DecoupledAdamW",
        "microbatch": 2, "seconds": 0.5 * number, "step_seconds": 0.5, "data_seconds": 0.1,
    }  # fmt: skip
    return StepFinished(**fields | changes)


def console(
    run: RunStarted, *, of: str = "100ba", total: int | None = 100, every: str = "1ba"
) -> tuple[ConsoleLogger, io.StringIO]:
    stream = io.StringIO()
    logger = ConsoleLogger(
        max_duration=Duration.parse(of),
        total_steps=total,
        interval=Duration.parse(every),
        progress_bar=True,
        stream=stream,
    )
    logger.run_started(run)
    return logger, stream


def log(logger: ConsoleLogger, number: int, loss: float = 10.9736, **more: float) -> None:
    logger.step_finished(step(number))
    metrics = {
        "loss/train/total": loss,
        "metrics/train/LanguageCrossEntropy": loss,
        "metrics/train/LanguagePerplexity": math.exp(loss),
        "time/batch": float(number),
        **more,
    }
    logger.metrics_logged(MetricsLogged(step=number, metrics=metrics))


def heads(text: str) -> list[str]:
    return re.findall(r"^\[.*\]:$", text, flags=re.MULTILINE)


END = RunFinished(step=1, seconds=1.0, stopped_by=None)


def test_the_lines_to_the_letter(make_run: MakeRun) -> None:
    logger, stream = console(make_run())
    logger.step_finished(step(1))
    metrics = {
        "loss/train/total": 10.9736,
        "metrics/train/LanguageCrossEntropy": 10.9736,
        "metrics/train/LanguagePerplexity": 58312.0586,
    }
    logger.metrics_logged(MetricsLogged(step=1, metrics=metrics))
    assert stream.getvalue() == (
        "[batch=1/100]:\n"
        "         Train LanguageCrossEntropy: 10.9736\n"
        "         Train Perplexity: 58312.0586\n"
        "         Train loss/train/total: 10.9736\n"
    )


def test_other_metrics_follow_under_their_full_keys(make_run: MakeRun) -> None:
    logger, stream = console(make_run())
    log(logger, 1, **{"lr-A/group0": 1.23456e-5, "x": 0.00123, "n": 0})
    assert stream.getvalue().splitlines()[3:] == [
        "         Train loss/train/total: 10.9736",
        "         Train lr-A/group0: 1.235e-05",
        "         Train x: 0.0012",
        "         Train n: 0",
    ]


def test_norms_by_parameter_are_not_printed(make_run: MakeRun) -> None:
    logger, stream = console(make_run())
    log(logger, 1, **{"l2_norm/grad/global": 2.0, "l2_norm/param/wte.weight": 3.0})
    assert stream.getvalue().splitlines()[4:] == ["         Train l2_norm/grad/global: 2.0000"]


def test_the_interval_and_the_first_moment_are_printed(make_run: MakeRun) -> None:
    logger, stream = console(make_run(), every="3ba")
    for number in range(1, 8):
        log(logger, number)
    assert heads(stream.getvalue()) == ["[batch=1/100]:", "[batch=3/100]:", "[batch=6/100]:"]
    logger.run_finished(END)
    assert heads(stream.getvalue())[3:] == ["[batch=7/100]:"]


def test_a_metric_logged_between_two_lines_is_in_the_next_one(make_run: MakeRun) -> None:
    logger, stream = console(make_run(), every="3ba")
    log(logger, 1)
    log(logger, 2, rare=7.0)
    log(logger, 3)
    text = stream.getvalue()
    assert text.index("[batch=3/100]") < text.index("Train rare: 7.0000")


@pytest.mark.parametrize(
    ("of", "total", "head"),
    [
        ("100ba", 100, "[batch=7/100]:"),
        ("3ep", 15, "[epoch=2][batch=2/5]:"),
        ("3ep", None, "[epoch=2][batch=2]:"),
        ("4000tok", None, "[token=280/4000]:"),
        ("400sp", 100, "[sample=28/400]:"),
        ("1h", None, "[second=3/3600]:"),
    ],
)
def test_the_head_is_in_the_unit_of_the_run(
    make_run: MakeRun, of: str, total: int | None, head: str
) -> None:
    logger, stream = console(make_run(), of=of, total=total)
    log(logger, 7)
    assert heads(stream.getvalue()) == [head]


def test_the_last_batch_of_an_epoch_belongs_to_it(make_run: MakeRun) -> None:
    logger, stream = console(make_run(), of="3ep", total=15)
    for number in (5, 6):
        log(logger, number)
    assert heads(stream.getvalue()) == ["[epoch=1][batch=5/5]:", "[epoch=2][batch=1/5]:"]


@pytest.mark.parametrize(
    ("label", "key", "head", "line"),
    [
        ("eval", "metrics/eval/LanguageCrossEntropy", "eval", "LanguageCrossEntropy"),
        ("eval", "metrics/eval/LanguagePerplexity", "eval", "Perplexity"),
        ("eval/c4", "metrics/eval/c4/LanguagePerplexity", "c4", "c4/Perplexity"),
    ],
)
def test_evaluation(make_run: MakeRun, label: str, key: str, head: str, line: str) -> None:
    logger, stream = console(make_run())
    logger.evaluation_started(EvaluationStarted(step=4, label=label, batches=10))
    finished = EvaluationFinished(step=4, epoch=0, label=label, metrics={key: 2.5}, seconds=1.0)
    logger.evaluation_finished(finished)
    # The loop hands the same numbers to all loggers; they are not printed twice.
    logger.metrics_logged(MetricsLogged(step=4, metrics={key: 2.5}))
    assert stream.getvalue() == (
        f"[Eval batch=10/10] Eval on {head} data:\n         Eval {line}: 2.5000\n"
    )


def test_tables_are_printed_row_by_row(make_run: MakeRun) -> None:
    logger, stream = console(make_run())
    rows = (("The", " end\n"),)
    logger.table_logged(TableLogged(step=3, name="generations", columns=("p", "g"), rows=rows))
    assert stream.getvalue() == (
        "generations at step 3:\n         p: 'The'\n         g: ' end\\n'\n"
    )


def on_a_terminal(*, progress_bar: bool) -> str:
    """Run a process whose stderr is a terminal of 100 columns; return what it shows."""
    code = f"""
import logging, math, sys, time
from types import SimpleNamespace
from foundry_sdk.events import MetricsLogged, RunFinished, StepFinished
from foundry_sdk.loggers.console import ConsoleLogger
from foundry_sdk.units import Duration
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_console import log, END
one = Duration.parse("1ba")
logger = ConsoleLogger(max_duration=Duration.parse("100ba"), total_steps=100, interval=one,
                       progress_bar={progress_bar})
logger.run_started(SimpleNamespace(step=0))
for number in range(1, 6):
    log(logger, number)
    print("a warning of somebody else", file=sys.stderr)
    time.sleep(0.3)
logger.run_finished(END)
"""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=slave,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the terminal's other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.wait() == 0
    return shown.decode()


def test_on_a_terminal_lines_stand_above_the_bar() -> None:
    shown = on_a_terminal(progress_bar=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n")
    lines = [line.rstrip() for line in plain.split("\n")]
    for number in range(1, 6):
        assert f"[batch={number}/100]:" in lines
    assert lines.count("         Train LanguageCrossEntropy: 10.9736") == 5
    assert lines.count("a warning of somebody else") == 5
    bars = [line for line in lines if line.startswith("training")]
    assert re.search(r"5/100 loss 10\.9736 80 tok/s 0:00:\d\d", bars[-1])
    # A line that shares its row with a piece of the bar would be garbled.
    assert not [line for line in lines if "training" in line and "[batch" in line]


def test_without_a_bar_a_terminal_gets_plain_lines() -> None:
    shown = on_a_terminal(progress_bar=False)
    assert "\x1b" not in shown
    assert heads(shown.replace("\r\n", "\n")) == [f"[batch={n}/100]:" for n in range(1, 6)]
