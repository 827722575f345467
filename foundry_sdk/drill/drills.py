"""A whole drill from its options: on a tiny run of its own, or on a given spec, shortened."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from foundry_sdk.drill.commands import ColdCommands, WarmCommands
from foundry_sdk.drill.material import write_material
from foundry_sdk.drill.rehearsal import Drill, DrillResult, Outcome
from foundry_sdk.drill.subjects import TrainingRun
from foundry_sdk.errors import RunError

STEPS: Final = 8
SAVE_EVERY: Final = 3
"""So that some steps are made again after most faults, and an older checkpoint is deleted."""
_PATIENCE: Final = 8.0
_SPEC_PATIENCE: Final = 60.0
"""Seconds that a rank may keep the others waiting: for the tiny run, and for a given one."""

Tell = Callable[[Outcome, int, int], None]


def drill_tiny(
    folder: Path,
    *,
    processes: int,
    full: bool,
    only: str | None,
    seconds: float | None,
    tell: Tell,
) -> DrillResult:
    """Rehearse on a tiny model, whose runs begin where everything is imported already.

    Args:
        folder: an empty one, which everything goes into.
        processes: of each run.
        full: every moment with every fault.
        only: pattern of the points.
        seconds: after so many no new fault is begun.
        tell: hears of each outcome, how many there are and how many are planned.

    Raises:
        RunError: the undisturbed run fails, or no point matches.
    """
    material = write_material(folder, steps=STEPS, save_every=SAVE_EVERY)
    with WarmCommands(folder / "server.txt") as commands:
        first = commands.run(
            material.conversion(material.data),
            environment={},
            output=folder / "data.txt",
            seconds=_SPEC_PATIENCE,
        )
        if first.code != 0:
            told = (folder / "data.txt").read_text(encoding="utf-8", errors="replace")
            raise RunError(f"the drill's own data cannot be made:\n{told}")
        training = TrainingRun(
            spec=material.spec,
            overrides=_overrides(_PATIENCE),
            root=folder / "runs",
            name="oracle",
            processes=processes,
            longest=12 * _PATIENCE,
            longest_hang=3 * _PATIENCE,
        )
        drill = Drill(folder, commands, training, material.conversion, tell=tell)
        result = drill.run(full=full, only=only, seconds=seconds)
    shutil.rmtree(folder / "converted")
    return result


def drill_spec(
    folder: Path,
    spec: Path,
    *,
    processes: int,
    full: bool,
    only: str | None,
    seconds: float | None,
    tell: Tell,
) -> DrillResult:
    """Rehearse on a spec of which eight steps are made, with its own data, model and devices.

    Args:
        folder: an empty one, which everything goes into: put it where checkpoints are to lie.
        spec: its file.
        processes: of each run.
        full: every moment with every fault.
        only: pattern of the points.
        seconds: after so many no new fault is begun.
        tell: hears of each outcome, how many there are and how many are planned.

    Raises:
        RunError: the undisturbed run fails, or no point matches.
    """
    shortened = (
        f"max_duration={STEPS}ba",
        f"save_interval={SAVE_EVERY}ba",
        "save_num_checkpoints_to_keep=2",
        "save_folder=null",
        "console_log_interval=1ba",
        "loggers={}",
        "progress_bar=false",
    )
    training = TrainingRun(
        spec=spec,
        overrides=(*shortened, *_overrides(_SPEC_PATIENCE)),
        root=folder / "runs",
        name="oracle",
        processes=processes,
        longest=15 * _SPEC_PATIENCE,
        longest_hang=5 * _SPEC_PATIENCE,
    )
    drill = Drill(folder, ColdCommands(), training, None, tell=tell)
    return drill.run(full=full, only=only, seconds=seconds)


def _overrides(patience: float) -> tuple[str, ...]:
    return (
        "callbacks.sample_ledger={}",
        f"callbacks.run_timeout.timeout={patience}",
        f"dist_timeout={patience}",
    )
