"""Durations: what parses to what, and what is refused with which words."""

import pytest

from foundry_sdk.errors import SpecError
from foundry_sdk.units import Duration, TimeUnit


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("100ba", 100, TimeUnit.BATCH),
        ("1ep", 1, TimeUnit.EPOCH),
        (3, 3, TimeUnit.EPOCH),
        ("2.5e9tok", 2_500_000_000, TimeUnit.TOKEN),
        ("3e4sp", 30_000, TimeUnit.SAMPLE),
        ("0.5dur", 0.5, TimeUnit.DURATION),
        ("1.5sec", 1.5, TimeUnit.SECOND),
        ("1h30m", 5400, TimeUnit.SECOND),
        ("90s", 90, TimeUnit.SECOND),
    ],
)
def test_parsing(text: str | int, value: float, unit: TimeUnit) -> None:
    assert Duration.parse(text) == Duration(value, unit)


@pytest.mark.parametrize("text", ["100ba", "1ep", "2500000000tok", "0.5dur", "1.5sec"])
def test_text_round_trip(text: str) -> None:
    assert str(Duration.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10xx", "unknown unit 'xx'; units are ep, ba, sp, tok, dur, sec"),
        ("1.5ba", "'ba' comes in whole numbers"),
        ("-1ba", "not negative"),
        ("2dur", "from 0 to 1"),
        ("fast", "such as '100ba'"),
        ("", "such as '100ba'"),
        (True, "such as '100ba'"),
        (1.5, "such as '100ba'"),
    ],
)
def test_refusals(text: object, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Duration.parse(text)  # type: ignore[arg-type]
