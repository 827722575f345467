"""The drill's outcomes as a table, as JSON, and as Markdown."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk.drill.rehearsal import DrillResult, Outcome
from foundry_sdk.runs.machine import git_state, host_facts, package_versions

COLUMNS: Final = (
    "Fault", "Point", "Injected", "Outcome", "Steps lost", "Seconds to detect", "to recover",
)  # fmt: skip
ACTION_WORDS: Final = {
    "kill": "kill -9",
    "eio": "I/O error",
    "enospc": "no space",
    "hang": "hang",
}


@attrs.frozen(kw_only=True)
class Row:
    """Outcomes of one fault at one point.

    Attributes:
        action, point: which.
        injected: how many times.
        lost: how often something was lost.
        ended: the ways in which the disturbed commands ended.
        steps_lost, seconds_to_detect, seconds_to_recover: the most of all; None = never so.
    """

    action: str
    point: str
    injected: int
    lost: int
    ended: tuple[str, ...]
    steps_lost: int
    seconds_to_detect: float | None
    seconds_to_recover: float | None

    def cells(self) -> tuple[str, ...]:
        """Return the row's texts, in the order of ``COLUMNS``."""
        outcome = "same bits" if not self.lost else f"LOST in {self.lost}"
        return (
            ACTION_WORDS[self.action],
            self.point,
            str(self.injected),
            f"{outcome} ({', '.join(self.ended)})",
            str(self.steps_lost),
            _seconds(self.seconds_to_detect),
            _seconds(self.seconds_to_recover),
        )


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return a row for each fault and point, in the order in which they came first."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.fault.point, outcome.fault.action), []).append(outcome)
    return [
        Row(
            action=action,
            point=point,
            injected=len(group),
            lost=sum(outcome.verdict == "lost" for outcome in group),
            ended=tuple(dict.fromkeys(outcome.ended for outcome in group)),
            steps_lost=max(outcome.steps_lost for outcome in group),
            seconds_to_detect=_most(outcome.seconds_to_detect for outcome in group),
            seconds_to_recover=_most(outcome.seconds_to_recover for outcome in group),
        )
        for (point, action), group in groups.items()
    ]


def summary(result: DrillResult) -> str:
    """Return the drill in one sentence."""
    lost = sum(outcome.verdict == "lost" for outcome in result.outcomes)
    steps = max((outcome.steps_lost for outcome in result.outcomes), default=0)
    end = "" if result.in_time else f" of {result.planned} planned; then the time was up"
    return (
        f"{len(result.outcomes)} faults{end}: {len(result.outcomes) - lost} survived with the "
        f"same bits, {lost} lost something; at most {steps} step(s) had to be made again "
        f"({result.seconds:.0f} s)"
    )


def write(
    result: DrillResult, folder: Path, *, about: str, processes: int, full: bool
) -> tuple[Path, Path]:
    """Write ``drill.json`` and ``drill.md`` into ``folder`` and return their paths."""
    host = host_facts()
    state = git_state(Path(__file__).parent)
    content = {
        "drill": 1,
        "about": about,
        "processes": processes,
        "full": full,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": None if state is None else state["commit"],
        "versions": package_versions(),
        "platform": host["platform"],
        "processors": host["processors"],
        "steps": result.steps,
        "losses": list(result.losses),
        "seconds": round(result.seconds, 1),
        "in_time": result.in_time,
        "planned": result.planned,
        "survived": result.survived,
        "faults": [_plain(outcome) for outcome in result.outcomes],
    }
    as_json, as_markdown = folder / "drill.json", folder / "drill.md"
    as_json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    as_markdown.write_text(markdown(content), encoding="utf-8")
    return as_json, as_markdown


def markdown(content: Mapping[str, Any]) -> str:
    """Return what a ``drill.json`` holds as a sentence and a table."""
    outcomes = [_outcome(fault) for fault in content["faults"]]
    lost = sum(outcome.verdict == "lost" for outcome in outcomes)
    versions = content["versions"]
    lines = [
        f"{len(outcomes)} faults in {content['about']} on {content['processes']} process(es), "
        f"{content['steps']} steps: {len(outcomes) - lost} survived with the same bits, {lost} "
        f"lost something ({content['date'][:10]}, commit {(content['commit'] or 'none')[:12]}, "
        f"torch {versions.get('torch', 'unknown')}).",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
        *(f"| {' | '.join(row.cells())} |" for row in rows(outcomes)),
    ]
    return "\n".join(lines) + "\n"


def _plain(outcome: Outcome) -> dict[str, Any]:
    plain = attrs.asdict(outcome)
    for name in ("seconds_to_detect", "seconds_to_recover"):
        if plain[name] is not None:
            plain[name] = round(plain[name], 2)
    return plain


def _outcome(plain: Mapping[str, Any]) -> Outcome:
    from foundry_sdk.drill.plan import Fault

    return Outcome(**{**plain, "fault": Fault(**plain["fault"])})


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
