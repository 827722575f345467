"""Which faults are rehearsed, from what an undisturbed run has reached."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, Literal

import attrs

from foundry_sdk.faultpoints import ACTIONS, Moment

Subject = Literal["train", "convert"]
_FEW_HANGS: Final = ("collective.gather", "collective.gradients", "checkpoint.write")
"""Where the short drill lets a rank hang: each costs as long as ranks wait for one another."""


@attrs.frozen(kw_only=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        subject: a training run or a conversion.
        point: where.
        action: what, one of ``faultpoints.ACTIONS``.
        nth: at which time that the point is reached.
        rank: in which process.
    """

    subject: Subject
    point: str
    action: str
    nth: int
    rank: int

    def variable(self) -> str:
        """Return it as the environment variable has it."""
        return f"{self.point}:{self.nth}:{self.action}:{self.rank}"


@attrs.frozen(kw_only=True)
class Series:
    """Faults of one kind at one point; each comes after the one before.

    Attributes:
        faults: at the times that an undisturbed run reaches the point.
        open_ended: go on after them until nothing fires any more.
    """

    faults: tuple[Fault, ...]
    open_ended: bool

    def beyond(self) -> Iterator[Fault]:
        """Yield the faults after the last, without an end."""
        last = self.faults[-1]
        while self.open_ended:
            last = attrs.evolve(last, nth=last.nth + 1)
            yield last


def count(moments: Sequence[Moment]) -> dict[tuple[str, int], int]:
    """Return how often each point was reached, by point and rank, in alphabetical order.

    The order of what several ranks reach varies, and a drill is to be the same each time.
    """
    return dict(sorted(Counter((moment.point, moment.rank) for moment in moments).items()))


def plan(
    counts: Mapping[Subject, Mapping[tuple[str, int], int]], *, full: bool, only: str | None
) -> list[Series]:
    """Return what to rehearse.

    Args:
        counts: by subject, what its undisturbed run reached.
        full: every moment with every fault, rather than a few of each point.
        only: pattern that points must match, such as ``checkpoint.*``.
    """
    chosen: list[Series] = []
    for subject, reached in counts.items():
        matching = {
            key: times
            for key, times in reached.items()
            if only is None or fnmatchcase(key[0], only)
        }
        chosen += list(_every(subject, matching) if full else _some(subject, matching))
    return chosen


def _every(subject: Subject, reached: Mapping[tuple[str, int], int]) -> Iterator[Series]:
    for (point, rank), times in reached.items():
        for action in _actions(subject):
            faults = tuple(
                Fault(subject=subject, point=point, action=action, nth=nth, rank=rank)
                for nth in range(1, times + 1)
            )
            yield Series(faults=faults, open_ended=True)


def _some(subject: Subject, reached: Mapping[tuple[str, int], int]) -> Iterator[Series]:
    """Yield a few faults of each point: ranks take turns, and so do early and late moments."""
    ranks: dict[str, list[int]] = {}
    for point, rank in reached:
        ranks.setdefault(point, []).append(rank)
    for number, (point, where) in enumerate(ranks.items()):
        actions = ["kill", ("enospc", "eio")[number % 2]]
        if point in _FEW_HANGS and "hang" in _actions(subject):
            actions.append("hang")
        for turn, action in enumerate(actions, start=number):
            rank = where[turn % len(where)]
            times = reached[point, rank]
            nth = (1, (times + 1) // 2, times)[turn % 3]
            fault = Fault(subject=subject, point=point, action=action, nth=nth, rank=rank)
            yield Series(faults=(fault,), open_ended=False)


def _actions(subject: Subject) -> tuple[str, ...]:
    """Nobody waits for a conversion that hangs but the person who ends it, as a kill does."""
    return ACTIONS if subject == "train" else tuple(a for a in ACTIONS if a != "hang")
