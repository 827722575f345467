"""A step's forwards and backwards."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foundry_sdk.training.feed import Drawn

if TYPE_CHECKING:
    from foundry_sdk.batch import LossOutput
    from foundry_sdk.training.assemble import Assembly


def forward_backward(assembly: "Assembly", drawn: Drawn, microbatch: int) -> Tensor:
    """Add this step's gradients up; return the sum of its losses on the device, float32 ().

    Each microbatch's sum is divided by the labels of the whole global batch, so neither the
    microbatch nor the number of ranks changes the gradient; ranks are averaged by what reduces
    gradients, which the world size undoes.
    """
    runtime = assembly.runtime
    parts = list(drawn.batch.split(microbatch))
    scale = runtime.world_size / max(drawn.labels, 1)
    total = torch.zeros((), device=runtime.device)
    with runtime.computing(microbatches=len(parts)):
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with runtime.gradients_synchronised(assembly.objective, when=last):
                with runtime.autocast():
                    output: LossOutput = assembly.objective(part.to(runtime.device))
                torch.autograd.backward(runtime.scaler.scale(output.loss_sum * scale))
            total += output.loss_sum.detach()
    return total
