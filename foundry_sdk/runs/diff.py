"""What differs between two runs: spec, versions, numbers."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk.errors import RunFolderError
from foundry_sdk.loggers.jsonl import METRICS_FILE, MetricsLine, read_metrics
from foundry_sdk.runs.plot import TRAIN_LOSS
from foundry_sdk.runs.record import SPEC_FILE, read_run

_ABSENT: Final = "(absent)"
# Times, rates and memory differ between any two runs.
_OF_THE_MACHINE: Final = (
    "time/train",
    "time/val",
    "time/total",
    "time/remaining",
    "throughput/",
    "memory/",
)


@attrs.frozen
class Difference:
    """One place, by dotted path, and what each run has there; ``(absent)`` where nothing."""

    path: str
    first: Any
    second: Any


@attrs.frozen(kw_only=True)
class LossDifference:
    """How two loss curves compare, over the steps that both logged.

    Attributes:
        common_steps: how many those are.
        first_step: the first of them where the losses are not the same number; None if nowhere.
        largest: the largest absolute difference, nats.
        largest_step: where that is.
    """

    common_steps: int
    first_step: int | None
    largest: float
    largest_step: int | None


@attrs.frozen(kw_only=True)
class RunDiff:
    """All differences of two runs, each list by dotted path.

    Attributes:
        spec: what was asked for.
        environment: versions, commit, devices, data, seeds, choices.
        metrics: the last value of each metric that differs; times, rates and memory are left
            out.
        loss: the curves.
    """

    first: str
    second: str
    spec: tuple[Difference, ...]
    environment: tuple[Difference, ...]
    metrics: tuple[Difference, ...]
    loss: LossDifference

    def plain(self) -> dict[str, Any]:
        """Return JSON values."""
        return attrs.asdict(self)


def diff_runs(first: Path, second: Path) -> RunDiff:
    """Compare two runs by their folders.

    Raises:
        RunFolderError: a folder holds no run, or its record can't be read.
    """
    lines = [read_metrics(path / METRICS_FILE) for path in (first, second)]
    last = [last_values(one) for one in lines]
    return RunDiff(
        first=str(first),
        second=str(second),
        spec=differences(_spec(first), _spec(second)),
        environment=differences(_environment(first), _environment(second)),
        metrics=tuple(
            Difference(key, last[0].get(key, _ABSENT), last[1].get(key, _ABSENT))
            for key in sorted(last[0].keys() | last[1].keys())
            if not key.startswith(_OF_THE_MACHINE)
            and not _equal(last[0].get(key), last[1].get(key))
        ),
        loss=compare_losses(lines[0], lines[1]),
    )


def differences(first: Any, second: Any, path: str = "") -> tuple[Difference, ...]:  # noqa: ANN401
    """Return where two plain values differ, in the order of the first, then of the second."""
    return tuple(_walk(first, second, path))


def compare_losses(first: list[MetricsLine], second: list[MetricsLine]) -> LossDifference:
    """Compare two curves of the training loss."""
    curves = [
        {line.step: line.values[TRAIN_LOSS] for line in lines if TRAIN_LOSS in line.values}
        for lines in (first, second)
    ]
    steps = sorted(curves[0].keys() & curves[1].keys())
    unequal = [step for step in steps if not _equal(curves[0][step], curves[1][step])]
    gaps = {step: _gap(curves[0][step], curves[1][step]) for step in unequal}
    largest_step = max(gaps, key=lambda step: gaps[step]) if gaps else None
    return LossDifference(
        common_steps=len(steps),
        first_step=unequal[0] if unequal else None,
        largest=gaps[largest_step] if largest_step is not None else 0.0,
        largest_step=largest_step,
    )


def is_parameter_norm(key: str) -> bool:
    """Whether a metric is a norm of one parameter, of which there are hundreds."""
    return key.startswith("l2_norm/") and key != "l2_norm/grad/global"


def last_values(lines: list[MetricsLine]) -> dict[str, float]:
    """Return the last logged value of each metric."""
    values: dict[str, float] = {}
    for line in lines:
        values |= line.values
    return values


def _walk(first: Any, second: Any, path: str) -> Iterator[Difference]:  # noqa: ANN401
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in dict.fromkeys([*first, *second]):
            below = f"{path}.{key}" if path else str(key)
            yield from _walk(first.get(key, _ABSENT), second.get(key, _ABSENT), below)
    elif (
        isinstance(first, list)
        and isinstance(second, list)
        and any(isinstance(item, Mapping | list) for item in (*first, *second))
    ):
        for index in range(max(len(first), len(second))):
            pair = [items[index] if index < len(items) else _ABSENT for items in (first, second)]
            yield from _walk(pair[0], pair[1], f"{path}[{index}]")
    elif type(first) is not type(second) or not _equal(first, second):
        yield Difference(path, first, second)


def _equal(first: Any, second: Any) -> bool:  # noqa: ANN401
    if isinstance(first, float) and isinstance(second, float) and math.isnan(first):
        return math.isnan(second)
    return bool(first == second)


def _gap(first: float, second: float) -> float:
    gap = abs(first - second)
    return math.inf if math.isnan(gap) else gap


def _spec(path: Path) -> Any:  # noqa: ANN401 - a plain document
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    file = path / SPEC_FILE
    try:
        return YAML(typ="safe", pure=True).load(file.read_text("utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise RunFolderError(f"{file}: cannot be read: {error}") from error


def _environment(path: Path) -> dict[str, Any]:
    run = read_run(path)
    if run is None:
        raise RunFolderError(f"{path} holds no run: it has no run.json")
    attempt = run["attempts"][-1]
    kept = {key: run[key] for key in ("devices", "data", "seeds", "choices")}
    return {"versions": attempt["versions"], "git": attempt["git"] or {}, **kept}
