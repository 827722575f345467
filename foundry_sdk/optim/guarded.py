"""What an optimizer offers that clips, refuses and rounds in its own pass over the weights."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class GuardedOptimizer(Protocol):
    """An optimizer whose update is decided on the device, so that the host need not wait.

    Without it, a step brings loss and gradient norm to the host before the update, scales the
    gradients in a pass of its own, and rounds the weights in another one.
    """

    def can_guard(self) -> bool:
        """Return whether :meth:`guarded_step` can be used with the parameters as they are."""
        ...

    def guarded_step(self, factor: Tensor, copies: Mapping[Tensor, Tensor]) -> None:
        """Update as ``step`` would with gradients multiplied by ``factor``.

        Args:
            factor: float32, 0-d, on the device. NaN: the update is left out, and neither weights
                nor state change.
            copies: lower-precision copies of parameters, to be set to the new values, rounded.
        """
        ...
