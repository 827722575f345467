"""Cross-entropy over whole logits, as torch computes it."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from foundry_sdk.batch import IGNORE_INDEX, LossOutput
from foundry_sdk.losses.module import LogitsLoss


class CrossEntropy(LogitsLoss):
    """Sum over labels of -log softmax(logits)[label], in float32.

    With ``z_loss`` c, ``c * logsumexp(logits)**2`` is added for each label that counts (Chowdhery
    et al. 2022, "PaLM", section 5), while training only: in evaluation mode the loss is the
    cross-entropy alone. Memory: float32 logits and their gradient.
    """

    def __init__(self, z_loss: float = 0.0) -> None:
        """Make the loss; ``z_loss`` is the coefficient c."""
        super().__init__()
        self.z_loss = z_loss

    def is_cross_entropy(self) -> bool:
        """Whether no z-loss is added: there is none, or the module is in evaluation mode."""
        return not (self.z_loss and self.training)

    def forward(self, logits: Tensor, labels: Tensor) -> LossOutput:
        """Return the sum and count; float64 logits give a float64 sum."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        flat, targets = logits.flatten(0, -2).to(dtype), labels.flatten()
        loss_sum = F.cross_entropy(flat, targets, reduction="sum", ignore_index=IGNORE_INDEX)
        counted = targets != IGNORE_INDEX
        if self.z_loss and self.training:
            squares = flat.logsumexp(dim=-1).square()
            loss_sum = loss_sum + self.z_loss * squares.where(counted, 0).sum()
        return LossOutput(loss_sum, counted.sum())
