"""What a run or a conversion left behind, and whether it is what it should be."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from foundry_sdk.callbacks.ledger import LedgerStep, final_steps, read_ledger
from foundry_sdk.checkpoint.layout import TENSOR_SUFFIX, step_folders
from foundry_sdk.loggers.jsonl import METRICS_FILE, read_metrics

_PIECE: Final = 1 << 20
_LOSS: Final = "loss/train/total"


@attrs.frozen(kw_only=True)
class RunEvidence:
    """A run, as far as its bits are to be the same whatever happened on the way.

    Attributes:
        steps: by rank, what each step was made from and what came of it.
        losses: by step, as logged.
        weights: by file of the last checkpoint, the digest of its tensors: model and optimizer.
    """

    steps: Mapping[int, Mapping[int, LedgerStep]]
    losses: Mapping[int, float]
    weights: Mapping[str, str]

    @classmethod
    def read(cls, run_dir: Path, checkpoints: Path, *, ranks: int) -> "RunEvidence":
        """Read what lies in a run's folder and in that of its checkpoints."""
        steps = {rank: final_steps(read_ledger(run_dir, rank)) for rank in range(ranks)}
        lines = read_metrics(run_dir / METRICS_FILE)
        losses = {line.step: line.values[_LOSS] for line in lines if _LOSS in line.values}
        folders = step_folders(checkpoints)
        files = sorted(folders[0][1].glob(f"*{TENSOR_SUFFIX}")) if folders else []
        weights = {path.name: tensor_digest(path) for path in files}
        return cls(steps=steps, losses=losses, weights=weights)

    def difference(self, oracle: "RunEvidence") -> str | None:
        """Return the first thing that is not as in the undisturbed run; None = the same bits."""
        for rank, expected in oracle.steps.items():
            problem = _first_difference(rank, expected, self.steps.get(rank, {}))
            if problem is not None:
                return problem
        for step, loss in oracle.losses.items():
            found = self.losses.get(step)
            if found is None or found.hex() != loss.hex():
                shown = None if found is None else found.hex()
                return f"the logged loss of step {step} is {shown}, expected {loss.hex()}"
        if len(self.losses) != len(oracle.losses):
            return f"{len(self.losses)} steps are logged, expected {len(oracle.losses)}"
        for name, digest in oracle.weights.items():
            if self.weights.get(name) != digest:
                return f"{name} of the last checkpoint differs"
        return None


def committed(checkpoints: Path) -> int:
    """Return the step of the newest checkpoint; 0 without one."""
    return max((step for step, _ in step_folders(checkpoints)), default=0)


def tensor_digest(path: Path) -> str:
    """Return SHA-256 of a safetensors file, but for the order in which its header says things.

    That order varies from one save to the next, with the same content.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """Return SHA-256 by relative path of every file in ``folder``."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _first_difference(
    rank: int, expected: Mapping[int, LedgerStep], found: Mapping[int, LedgerStep]
) -> str | None:
    for step, line in expected.items():
        other = found.get(step)
        if other is None:
            return f"rank {rank} did not make step {step}"
        if other.samples != line.samples:
            return f"rank {rank}, step {step}: samples {other.samples}, expected {line.samples}"
        for name in ("loss", "gradient_norm"):
            was, now = getattr(line, name).hex(), getattr(other, name).hex()
            if was != now:
                return f"rank {rank}, step {step}: {name} {now}, expected {was}"
    more = found.keys() - expected.keys()
    return f"rank {rank} made steps {sorted(more)} beyond the end" if more else None
