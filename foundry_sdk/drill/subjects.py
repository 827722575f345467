"""What is rehearsed on: a run of ``foundry train``, and a conversion."""

import shutil
from collections.abc import Callable
from pathlib import Path

import attrs

from foundry_sdk.callbacks.ledger import LedgerAttempt, read_ledger
from foundry_sdk.drill.evidence import RunEvidence

Conversion = Callable[[Path], list[str]]
"""Folder → the arguments of ``foundry`` that convert into it."""


@attrs.frozen(kw_only=True)
class TrainingRun:
    """One run of a spec, in a folder of its own.

    Attributes:
        spec: its file.
        overrides: what the drill changes of it.
        root: where runs are kept.
        name: of this one.
        processes: how many it is.
        longest: seconds after which a command is ended that is not over.
        longest_hang: the same for one that is made to hang, and should have been noticed.
    """

    spec: Path
    overrides: tuple[str, ...]
    root: Path
    name: str
    processes: int
    longest: float
    longest_hang: float

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.root / self.name

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are."""
        return self.folder / "checkpoints"

    def named(self, name: str) -> "TrainingRun":
        """Return the same run in another folder."""
        return attrs.evolve(self, name=name)

    def arguments(self) -> list[str]:
        """Return the plain command, without ``foundry``: it starts the run and goes on with it."""
        place = (f"run_root={self.root}", f"run_name={self.name}", "autoresume=true")
        return ["train", str(self.spec), *self.overrides, *place]

    def attempts(self) -> list[LedgerAttempt]:
        """Return what each start has done, on rank 0."""
        return read_ledger(self.folder, 0)

    def evidence(self) -> RunEvidence:
        """Return what is to be the same whatever happened."""
        return RunEvidence.read(self.folder, self.checkpoints, ranks=self.processes)

    def remove(self) -> None:
        """Delete the run's folder."""
        shutil.rmtree(self.folder)
