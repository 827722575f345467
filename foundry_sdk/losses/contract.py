"""What every loss spec promises."""

from abc import abstractmethod
from typing import TYPE_CHECKING

import attrs

from foundry_sdk.component import ComponentSpec

if TYPE_CHECKING:
    from foundry_sdk.losses.module import HeadLoss, LogitsLoss


@attrs.frozen(kw_only=True)
class LossSpec(ComponentSpec):
    """Family of losses."""

    family = "loss"

    @abstractmethod
    def build(self) -> "LogitsLoss | HeadLoss":
        """Return the module; which of the two classes it is tells what the loop hands to it."""
