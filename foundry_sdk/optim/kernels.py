"""Updates in one pass over parameter, gradient and state, as Triton kernels.

Each kernel multiplies gradients by a factor that lies on the device, does nothing at all where
that is NaN, and writes a 16-bit copy of the new parameter where there is one.
"""

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
_WARPS = 8


def lion(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Tensor],
    copies: Sequence[Tensor | None],
    *,
    factor: Tensor | None,
    keep: float,
    lr: float,
    betas: tuple[float, float],
    seeds: Sequence[int] | None = None,
) -> None:
    """Do Lion's update, ``p = keep * p - lr * sign(...)``, and update the momentum, in place.

    Args:
        params: contiguous, on one GPU.
        grads: of any floating dtype, contiguous.
        moments: likewise.
        copies: of the new parameters; None = there is none.
        factor: float32, 0-d, on the device: multiplies gradients; None = 1.
        keep: of weight decay.
        lr: of the update.
        betas: shares of the momentum in the update and in the next momentum.
        seeds: one for each parameter: round to bfloat16 up or down at random (stochastically);
            None = to nearest.
    """
    for index, (p, grad, moment) in enumerate(zip(params, grads, moments, strict=True)):
        if p.numel() == 0:
            continue
        copy = copies[index]
        with torch.cuda.device(p.device):
            _lion[(triton.cdiv(p.numel(), _BLOCK),)](
                p,
                grad,
                moment,
                p if copy is None else copy,
                _one(p.device) if factor is None else factor,
                p.numel(),
                keep,
                lr,
                1 - betas[0],
                1 - betas[1],
                0 if seeds is None else seeds[index],
                has_copy=copy is not None,
                stochastic=seeds is not None,
                block=_BLOCK,
                num_warps=_WARPS,
            )


def adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[tuple[Tensor, Tensor]],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor | None],
    *,
    factor: Tensor,
    keep: float,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Do AdamW's update in place, ``p = keep * p - lr * m̂ / (sqrt(v̂) + eps)``.

    Args:
        params: contiguous, on one GPU.
        grads: of any floating dtype, contiguous.
        moments: averages of gradients and of their squares.
        steps: float32, 0-d, on the device: how many updates were made, this one included.
        copies: of the new parameters; None = there is none.
        factor: float32, 0-d, on the device: multiplies gradients.
        keep: of weight decay.
        lr: of the update.
        betas: decay rates of the averages.
        eps: added to the denominator.
    """
    for index, (p, grad) in enumerate(zip(params, grads, strict=True)):
        if p.numel() == 0:
            continue
        copy = copies[index]
        with torch.cuda.device(p.device):
            _adamw[(triton.cdiv(p.numel(), _BLOCK),)](
                p,
                grad,
                *moments[index],
                steps[index],
                p if copy is None else copy,
                factor,
                p.numel(),
                keep,
                lr,
                1 - betas[0],
                1 - betas[1],
                math.log(betas[0]) if betas[0] else -math.inf,
                math.log(betas[1]) if betas[1] else -math.inf,
                eps,
                has_copy=copy is not None,
                block=_BLOCK,
                num_warps=_WARPS,
            )


@functools.cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)


@triton.jit(do_not_specialize=["seed"])  # type: ignore[untyped-decorator, unused-ignore]  # untyped
def _lion(  # noqa: PLR0917 - Triton passes by position
    weights: tl.tensor,
    grads: tl.tensor,
    moments: tl.tensor,
    copies: tl.tensor,
    factors: tl.tensor,
    count: tl.tensor,
    keep: tl.tensor,
    lr: tl.tensor,
    weight1: tl.tensor,
    weight2: tl.tensor,
    seed: tl.tensor,
    has_copy: tl.constexpr,
    stochastic: tl.constexpr,
    block: tl.constexpr,
) -> None:
    factor = tl.load(factors)
    if factor == factor:  # noqa: PLR0124 - not NaN
        offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = offsets < count
        p = tl.load(weights + offsets, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grads + offsets, mask=inside, other=0.0).to(tl.float32) * factor
        moment = tl.load(moments + offsets, mask=inside, other=0.0).to(tl.float32)
        update = moment + weight1 * (grad - moment)
        # Neither branch holds for NaN, which stays NaN as in torch.sign.
        sign = tl.where(update > 0, 1.0, tl.where(update < 0, -1.0, update))
        p = p * keep - lr * sign
        if stochastic:
            # Up with the probability that the cut-off bits say: the expectation is exact.
            noise = tl.randint(seed, offsets.to(tl.int32)).to(tl.uint32, bitcast=True) & 0xFFFF
            bits = p.to(tl.uint32, bitcast=True) + noise
            p = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
        tl.store(weights + offsets, p, mask=inside)
        if has_copy:
            tl.store(copies + offsets, p, mask=inside)
        tl.store(moments + offsets, moment + weight2 * (grad - moment), mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]  # Triton is untyped where absent
def _adamw(  # noqa: PLR0917 - Triton passes by position
    weights: tl.tensor,
    grads: tl.tensor,
    averages: tl.tensor,
    squares: tl.tensor,
    steps: tl.tensor,
    copies: tl.tensor,
    factors: tl.tensor,
    count: tl.tensor,
    keep: tl.tensor,
    lr: tl.tensor,
    weight1: tl.tensor,
    weight2: tl.tensor,
    log_beta1: tl.tensor,
    log_beta2: tl.tensor,
    eps: tl.tensor,
    has_copy: tl.constexpr,
    block: tl.constexpr,
) -> None:
    factor = tl.load(factors)
    if factor == factor:  # noqa: PLR0124 - not NaN
        # In float64: 1 - beta ** 1 loses half of float32's digits.
        step = tl.load(steps).to(tl.float64)
        correction1 = (1.0 - tl.exp(step * log_beta1.to(tl.float64))).to(tl.float32)
        correction2 = tl.sqrt(1.0 - tl.exp(step * log_beta2.to(tl.float64))).to(tl.float32)
        offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = offsets < count
        p = tl.load(weights + offsets, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grads + offsets, mask=inside, other=0.0).to(tl.float32) * factor
        average = tl.load(averages + offsets, mask=inside, other=0.0).to(tl.float32)
        square = tl.load(squares + offsets, mask=inside, other=0.0).to(tl.float32)
        average += weight1 * (grad - average)
        square += weight2 * (grad * grad - square)
        p = p * keep - (lr / correction1) * average / (tl.sqrt(square) / correction2 + eps)
        tl.store(weights + offsets, p, mask=inside)
        if has_copy:
            tl.store(copies + offsets, p, mask=inside)
        tl.store(averages + offsets, average, mask=inside)
        tl.store(squares + offsets, square, mask=inside)
