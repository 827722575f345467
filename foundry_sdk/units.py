"""Durations in training's own units: ``"100ba"``, ``"1ep"``, ``"2.5e9tok"``."""

import re
from enum import StrEnum
from typing import Final

import attrs

from foundry_sdk.errors import SpecError


class TimeUnit(StrEnum):
    """What a duration counts."""

    EPOCH = "ep"
    BATCH = "ba"
    SAMPLE = "sp"
    TOKEN = "tok"  # noqa: S105 - a unit, not a secret
    DURATION = "dur"
    SECOND = "sec"


_NUMBER_UNIT: Final = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-z]+)\s*")
_CLOCK: Final = re.compile(r"(?=\d)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


@attrs.frozen(order=False)
class Duration:
    """A number of one unit. ``dur`` is a share (0 to 1) of the run and the only fraction.

    A Python int is read as epochs, as in LLM Foundry.
    """

    value: float
    unit: TimeUnit

    @classmethod
    def parse(cls, text: "str | int | Duration") -> "Duration":
        """Read ``"100ba"``, ``"3e4tok"``, ``"0.5dur"``, ``"1h30m"`` or an int (epochs).

        Raises:
            SpecError: the text is no duration, names an unknown unit, is negative, or is a
                fraction of a unit that only comes whole.
        """
        if isinstance(text, Duration):
            return text
        if isinstance(text, bool) or not isinstance(text, int | str):
            raise SpecError(f"expected a duration such as '100ba' or '1ep', got {text!r}")
        if isinstance(text, int):
            return cls._checked(float(text), TimeUnit.EPOCH, str(text))
        clock = _CLOCK.fullmatch(text.strip())
        if clock and any(clock.groups()):
            hours, minutes, seconds = (int(part or 0) for part in clock.groups())
            return cls(float(hours * 3600 + minutes * 60 + seconds), TimeUnit.SECOND)
        match = _NUMBER_UNIT.fullmatch(text)
        if match is None:
            raise SpecError(f"expected a duration such as '100ba' or '1ep', got {text!r}")
        number, unit = match.groups()
        if unit not in set(TimeUnit):
            raise SpecError(f"{text!r}: unknown unit {unit!r}; units are {', '.join(TimeUnit)}")
        return cls._checked(float(number), TimeUnit(unit), text)

    @classmethod
    def _checked(cls, value: float, unit: TimeUnit, text: str) -> "Duration":
        if value < 0:
            raise SpecError(f"{text!r}: a duration is not negative")
        if unit is TimeUnit.DURATION:
            if value > 1:
                raise SpecError(f"{text!r}: 'dur' is a share of the run, from 0 to 1")
        elif unit is not TimeUnit.SECOND and value != int(value):
            raise SpecError(f"{text!r}: {unit.value!r} comes in whole numbers")
        return cls(value, unit)

    def __str__(self) -> str:
        """Return the text that parses to this duration."""
        whole = self.value == int(self.value)
        return f"{int(self.value) if whole else self.value}{self.unit.value}"
