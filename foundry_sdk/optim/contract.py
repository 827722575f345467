"""What optimizers and schedulers promise."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import validators

from foundry_sdk.component import ComponentSpec

if TYPE_CHECKING:
    import torch

    from foundry_sdk.units import Duration

ParamGroups = list[dict[str, Any]]
"""torch's own shape: ``params`` and overrides such as ``lr`` and ``weight_decay``."""


def _finite_and_not_negative(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{attribute.name} must be a finite number >= 0, got {value!r}")


@attrs.frozen(kw_only=True)
class OptimizerSpec(ComponentSpec):
    """Family of optimizers.

    Attributes:
        lr: peak learning rate, before the schedule.
        disable_grad: regex, or several, of parameter names that are not trained.
        param_groups: each ``{param_str_match: regex, ...overrides}``, the first match wins; what
            none matches is group 0.
    """

    family = "optimizer"
    lr: float = attrs.field(validator=_finite_and_not_negative)
    disable_grad: tuple[str, ...] | str | None = None
    param_groups: tuple[Mapping[str, Any], ...] | None = attrs.field(
        default=None, validator=validators.optional(validators.instance_of(tuple))
    )

    def state_floats(self) -> int | None:
        """Return how many float32 numbers the optimizer keeps per parameter; None = not told."""
        return None

    @abstractmethod
    def build(self, groups: ParamGroups) -> "torch.optim.Optimizer":
        """Return the optimizer over ``groups``; the loop writes ``group["lr"]`` each step."""


@attrs.frozen(kw_only=True)
class RunLength:
    """All that a schedule may need to know of the run, in each unit that is known.

    Attributes:
        max_duration: as in the spec.
        steps: of the whole run; None where unknown beforehand.
        steps_per_epoch: None for data without an end.
        samples_per_step: the global batch.
        tokens_per_step: global batch times sequence length.
    """

    max_duration: "Duration"
    steps: int | None
    steps_per_epoch: int | None
    samples_per_step: int
    tokens_per_step: int


@attrs.frozen(kw_only=True)
class Progress:
    """How far a run is, before the step whose multiplier is asked for."""

    step: int
    epoch: int
    samples: int
    tokens: int
    seconds: float


Schedule = Callable[[Progress], float]
"""Pure: progress → multiplier on the peak learning rate of every group."""


@attrs.frozen(kw_only=True)
class SchedulerSpec(ComponentSpec):
    """Family of learning rate schedules."""

    family = "scheduler"

    @abstractmethod
    def build(self, length: RunLength) -> Schedule:
        """Return the schedule.

        Raises:
            SpecError: its durations do not fit the run (units that cannot be compared, a warmup
                longer than the run).
        """
