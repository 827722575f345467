"""When something is due, in every unit."""

from typing import Any

import pytest

from foundry_sdk.errors import SpecError
from foundry_sdk.events import StepFinished
from foundry_sdk.intervals import Interval, fraction_done
from foundry_sdk.units import Duration


def step(number: int, **changes: Any) -> StepFinished:
    """A step of 3 samples, 70 tokens and 2 seconds; epochs of 4 steps."""
    fields: dict[str, Any] = {
        "step": number, "epoch": number // 4, "batch_in_epoch": number % 4, "samples": 3 * number,
        "tokens": 70 * number, "step_samples": 3, "step_tokens": 70, "step_labels": 70,
        "loss": 1.0, "gradient_norm": 1.0, "lrs": (), "optimizer": "x", "microbatch": 1,
        "seconds": 2.0 * number, "step_seconds": 2.0, "data_seconds": 0.0,
    }  # fmt: skip
    return StepFinished(**fields | changes)


def due(every: str, *, of: str = "12ba", total: int | None = 12, start: int = 0) -> list[int]:
    interval = Interval(
        Duration.parse(every), max_duration=Duration.parse(of), total_steps=total, start_step=start
    )
    return [number for number in range(start + 1, 13) if interval.fires(step(number))]


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        ("5ba", [5, 10]),
        ("0ba", []),
        ("1ep", [4, 8, 12]),
        ("2ep", [8]),
        ("10sp", [4, 7, 10]),
        ("100tok", [2, 3, 5, 6, 8, 9, 10, 12]),
        ("5sec", [3, 5, 8, 10]),
        ("0.25dur", [3, 6, 9, 12]),
        ("0.3dur", [4, 8, 12]),
    ],
)
def test_steps_at_which_it_is_due(every: str, steps: list[int]) -> None:
    assert due(every) == steps


@pytest.mark.parametrize("every", ["5ba", "1ep", "10sp", "100tok", "5sec", "0.25dur"])
@pytest.mark.parametrize("start", [1, 5, 7])
def test_a_resumed_run_is_due_at_the_same_steps(every: str, start: int) -> None:
    assert due(every, start=start) == [number for number in due(every) if number > start]


def test_a_share_of_tokens_where_the_steps_are_not_known() -> None:
    assert due("0.5dur", of="840tok", total=None) == [6, 12]


def test_a_share_of_a_share_is_refused() -> None:
    with pytest.raises(SpecError, match="max_duration"):
        due("0.5dur", of="1dur", total=None)


@pytest.mark.parametrize(
    ("of", "total", "fraction"),
    [("12ba", 12, 0.25), ("840tok", None, 0.25), ("36sp", None, 0.25), ("24sec", None, 0.25),
     ("3ep", None, None), ("6ba", None, 0.5), ("2ba", None, 1.0)],
)  # fmt: skip
def test_fraction_done(of: str, total: int | None, fraction: float | None) -> None:
    assert fraction_done(step(3), max_duration=Duration.parse(of), total_steps=total) == fraction
