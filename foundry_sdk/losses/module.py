"""The two shapes of a loss: over logits, or over hidden states and the head's weight."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from foundry_sdk.batch import LossOutput


class LogitsLoss(nn.Module, ABC):
    """A loss that reads whole logits."""

    @abstractmethod
    def forward(self, logits: Tensor, labels: Tensor) -> LossOutput:
        """Return the sum and count over ``logits`` (..., V) and ``labels`` (...), int64."""


class HeadLoss(nn.Module, ABC):
    """A loss that makes the logits itself, piece by piece, so that they never exist whole."""

    @abstractmethod
    def forward(
        self,
        hidden_states: Tensor,
        head_weight: Tensor,
        labels: Tensor,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> LossOutput:
        """Return the sum and count.

        Args:
            hidden_states: (..., H).
            head_weight: (V, H).
            labels: (...), int64.
            scale: factor on the logits.
            softcap: c of ``c * tanh(scale * logits / c)``; None = no cap.
        """
