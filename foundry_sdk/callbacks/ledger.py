"""``sample_ledger``: which samples each step was made from, and what came of it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.errors import RunError
from foundry_sdk.events import GradientsReady, RunFinished, RunStarted
from foundry_sdk.hookspecs import hookimpl

_NAME: Final = "samples-rank-{rank:05d}.jsonl"


@attrs.frozen(kw_only=True)
class SampleLedgerSpec(CallbackSpec):
    """Writes ``samples-rank-N.jsonl`` into the run's folder: a line per step and start.

    Each rank has a file, to which every start of the run adds: a step that was made again after
    an interruption is there twice.
    """

    kind = "sample_ledger"

    def build(self, run: RunStarted) -> "SampleLedger":
        """Return the callback; for a run that leaves nothing on disk, one that writes nothing."""
        folder = run.run_dir
        return SampleLedger(None if folder is None else folder / _NAME.format(rank=run.rank))


@attrs.frozen(kw_only=True)
class LedgerStep:
    """One step of one rank.

    Attributes:
        step: its number, from 1.
        loss: of the global batch, nats per label.
        gradient_norm: before clipping.
        samples: numbers of this rank's samples; None where the data has none.
    """

    step: int
    loss: float
    gradient_norm: float
    samples: tuple[int, ...] | None


@attrs.frozen(kw_only=True)
class LedgerAttempt:
    """What one start of the run did: it went on from step ``start``."""

    start: int
    world_size: int
    steps: tuple[LedgerStep, ...]


class SampleLedger:
    """Sees every step's gradients without a say in what becomes of them."""

    key = SampleLedgerSpec.kind
    answers_only_non_finite = True

    def __init__(self, path: Path | None) -> None:
        """Write to ``path``, if there is one."""
        self._path = path
        self._file: BinaryIO | None = None

    @hookimpl
    def run_started(self, event: RunStarted) -> None:
        """Drop a line that a killed process left unfinished, and begin an attempt."""
        if self._path is None:
            return
        if self._path.exists():
            data = self._path.read_bytes()
            os.truncate(self._path, data.rfind(b"\n") + 1)
        # Unbuffered: a line is one write, so a killed process leaves whole lines but the last.
        self._file = self._path.open("ab", buffering=0)
        self._append({"start": event.step, "world_size": event.world_size})

    @hookimpl
    def gradients_ready(self, event: GradientsReady) -> None:
        """Note the step."""
        self._append(
            {
                "step": event.step,
                "loss": event.loss,
                "gradient_norm": event.gradient_norm,
                "samples": event.sample_ids,
            }
        )

    @hookimpl
    def run_finished(self, event: RunFinished) -> None:  # noqa: ARG002 - the moment is all
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write((json.dumps(line) + "\n").encode())


def read_ledger(run_dir: Path, rank: int) -> list[LedgerAttempt]:
    """Return the attempts of a rank, oldest first; [] where it has made none.

    Raises:
        RunError: a whole line is not what the callback writes.
    """
    path = run_dir / _NAME.format(rank=rank)
    attempts: list[LedgerAttempt] = []
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            row = json.loads(line)
            if "start" in row:
                attempts.append(LedgerAttempt(**row, steps=()))
                continue
            samples = row.pop("samples")
            step = LedgerStep(**row, samples=None if samples is None else tuple(samples))
            attempts[-1] = attrs.evolve(attempts[-1], steps=(*attempts[-1].steps, step))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RunError(f"{path}:{number}: not a line of the sample ledger: {error}") from error
    return attempts


def final_steps(attempts: list[LedgerAttempt]) -> dict[int, LedgerStep]:
    """Return what the run is made of: of each step the last time that it was made."""
    return {step.step: step for attempt in attempts for step in attempt.steps}


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [line for line in lines if line.endswith(b"\n")]
