"""The specs of the losses; building one loads torch."""

import math
from typing import TYPE_CHECKING, Any

import attrs

from foundry_sdk.losses.contract import LossSpec

if TYPE_CHECKING:
    from foundry_sdk.losses.module import HeadLoss, LogitsLoss


def _coefficient(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name} must be a finite number >= 0, got {value!r}")


def _bytes(_: object, attribute: "attrs.Attribute[Any]", value: int) -> None:
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1 byte, got {value!r}")


@attrs.frozen(kw_only=True)
class CrossEntropySpec(LossSpec):
    """Cross-entropy over whole logits.

    Attributes:
        z_loss: coefficient of logsumexp(logits)**2, added while training; 0 = none.
    """

    kind = "torch_crossentropy"
    z_loss: float = attrs.field(default=0.0, validator=_coefficient)

    def build(self) -> "LogitsLoss | HeadLoss":
        """Return the module."""
        from foundry_sdk.losses.cross_entropy import CrossEntropy

        return CrossEntropy(self.z_loss)


@attrs.frozen(kw_only=True)
class FusedCrossEntropySpec(LossSpec):
    """Head and cross-entropy in one, chunk by chunk: the same values in less memory.

    Attributes:
        z_loss: coefficient of logsumexp(logits)**2, added while training; 0 = none.
        max_logits_bytes: bound on the logits that exist at a time.
    """

    kind = "fused_crossentropy"
    z_loss: float = attrs.field(default=0.0, validator=_coefficient)
    max_logits_bytes: int = attrs.field(default=1 << 29, validator=_bytes)

    def build(self) -> "LogitsLoss | HeadLoss":
        """Return the module."""
        from foundry_sdk.losses.fused import FusedCrossEntropy

        return FusedCrossEntropy(self.z_loss, self.max_logits_bytes)
