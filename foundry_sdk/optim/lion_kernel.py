"""Lion's update in one pass over parameter, gradient and momentum, as a Triton kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from foundry_sdk.optim.lionw import foreach_lion

_BLOCK = 4096


def fused_lion(
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[Tensor],
    *,
    keep: float,
    lr: float,
    betas: tuple[float, float],
) -> None:
    """Do ``p = keep * p - lr * sign(...)`` and update the momentum, in place.

    All tensors are on one GPU. Those that do not lie in memory alike go through foreach.
    """
    beta1, beta2 = betas
    for p, grad, moment in zip(params, grads, moments, strict=True):
        if p.numel() == 0:
            continue
        if not (p.is_contiguous() and grad.is_contiguous() and moment.is_contiguous()):
            if keep != 1.0:
                p.mul_(keep)
            foreach_lion([p], [grad], [moment], lr=lr, beta1=beta1, beta2=beta2)
            continue
        grid = (triton.cdiv(p.numel(), _BLOCK),)
        with torch.cuda.device(p.device):
            _lion[grid](
                p,
                grad,
                moment,
                p.numel(),
                keep,
                lr,
                1 - beta1,
                1 - beta2,
                block=_BLOCK,
                num_warps=8,
            )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]  # Triton is untyped where absent
def _lion(  # noqa: PLR0917 - Triton passes by position
    weights: tl.tensor,
    grads: tl.tensor,
    moments: tl.tensor,
    count: tl.tensor,
    keep: tl.tensor,
    lr: tl.tensor,
    weight1: tl.tensor,
    weight2: tl.tensor,
    block: tl.constexpr,
) -> None:
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < count
    p = tl.load(weights + offsets, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grads + offsets, mask=inside, other=0.0).to(tl.float32)
    moment = tl.load(moments + offsets, mask=inside, other=0.0).to(tl.float32)
    update = moment + weight1 * (grad - moment)
    # Neither branch holds for NaN, which stays NaN as in torch.sign.
    sign = tl.where(update > 0, 1.0, tl.where(update < 0, -1.0, update))
    tl.store(weights + offsets, p * keep - lr * sign, mask=inside)
    tl.store(moments + offsets, moment + weight2 * (grad - moment), mask=inside)
