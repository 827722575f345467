"""The two shapes of a loss: over logits, or over hidden states and the head's weight."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from foundry_sdk.batch import LossOutput


class Loss(nn.Module):
    """What both shapes have in common."""

    def is_cross_entropy(self) -> bool:
        """Whether ``loss_sum``, in the mode the module is in, is the labels' cross-entropy alone.

        Only then are cross-entropy and perplexity logged beside the loss. A loss that adds a
        term, smooths labels or weighs them says no, which is the default.
        """
        return False


class LogitsLoss(Loss, ABC):
    """A loss that reads whole logits."""

    @abstractmethod
    def forward(self, logits: Tensor, labels: Tensor) -> LossOutput:
        """Return the sum and count over ``logits`` (..., V) and ``labels`` (...), int64."""


class HeadLoss(Loss, ABC):
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
