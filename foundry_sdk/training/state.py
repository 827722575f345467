"""How far training is: what a checkpoint holds besides tensors, data position and RNG."""

from collections.abc import Mapping
from typing import Any

import attrs

from foundry_sdk.optim.contract import Progress
from foundry_sdk.training.plan import Clock


@attrs.define(kw_only=True)
class TrainState:
    """Counters of a run, over all ranks.

    Attributes:
        step: updates made (or skipped).
        samples, tokens: seen; tokens without padding.
        epoch: epochs finished.
        batch_in_epoch: batches taken of the epoch under way.
        seconds: training time without evaluation and checkpointing, over all starts.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    epoch: int = 0
    batch_in_epoch: int = 0
    seconds: float = 0.0

    def clock(self) -> Clock:
        """Return the counters as a frozen point in time."""
        return Clock(
            step=self.step,
            epoch=self.epoch,
            samples=self.samples,
            tokens=self.tokens,
            seconds=self.seconds,
        )

    def progress(self) -> Progress:
        """Return the counters as a schedule reads them."""
        return Progress(**attrs.asdict(self.clock()))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainState":
        """Return the state that ``to_dict`` wrote."""
        return cls(**values)
