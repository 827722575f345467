"""A Triton kernel that turns logits into their gradient in place. Import it on a GPU only."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from foundry_sdk.batch import IGNORE_INDEX

_MOST_COLUMNS = 8192
"""Logits of one row that a program holds at a time."""


def softmax_gradient(
    logits: Tensor,
    labels: Tensor,
    losses: Tensor,
    *,
    scale: float,
    softcap: float | None,
    z_loss: float,
    multiplier: float,
    gradient: bool,
) -> None:
    """Write each row's loss, and its gradient over ``logits``; all arithmetic is in float32.

    Args:
        logits: (rows, V), contiguous in rows; overwritten where ``gradient``.
        labels: int64 (rows,).
        losses: float32 (rows,), written.
        scale: factor on the logits.
        softcap: c of ``c * tanh(scale * logits / c)``; None = no cap.
        z_loss: coefficient of the squared log-partition.
        multiplier: factor on the gradient alone.
        gradient: whether to write it.
    """
    rows, vocab_size = logits.shape
    if rows == 0:
        return
    block = min(_MOST_COLUMNS, triton.next_power_of_2(vocab_size))
    with torch.cuda.device(logits.device):
        _softmax_gradient[(rows,)](
            logits,
            labels,
            losses,
            logits.stride(0),
            vocab_size,
            float(scale),
            float(softcap or 1.0),
            float(z_loss),
            float(scale * multiplier),
            ignore=IGNORE_INDEX,
            has_softcap=softcap is not None,
            gradient=gradient,
            block=block,
            num_warps=16 if block >= 4096 else 4,
        )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]  # Triton is untyped where absent
def _capped(
    x: tl.tensor, scale: tl.tensor, softcap: tl.tensor, has_softcap: tl.constexpr
) -> tl.tensor:
    x = x * scale
    if has_softcap:
        x = softcap * libdevice.tanh(x / softcap)
    return x


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]  # Triton is untyped where absent
def _softmax_gradient(  # noqa: PLR0917 - Triton passes by position
    logits: tl.tensor,
    labels: tl.tensor,
    losses: tl.tensor,
    stride: tl.tensor,
    vocab_size: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    z_loss: tl.tensor,
    slope_scale: tl.tensor,
    ignore: tl.constexpr,
    has_softcap: tl.constexpr,
    gradient: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    label = tl.load(labels + row)
    columns = tl.arange(0, block)
    if label == ignore:
        tl.store(losses + row, 0.0)
        if gradient:
            for start in range(0, vocab_size, block):
                tl.store(
                    logits + start + columns,
                    tl.zeros((block,), dtype=logits.dtype.element_ty),
                    mask=start + columns < vocab_size,
                )
        return
    # Each lane keeps the sum of its exponentials relative to its largest logit so far, corrected
    # whenever that grows; lanes are reduced once, at the end.
    peaks = tl.full((block,), -1e30, dtype=tl.float32)
    sums = tl.zeros((block,), dtype=tl.float32)
    for start in range(0, vocab_size, block):
        inside = start + columns < vocab_size
        x = tl.load(logits + start + columns, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, _capped(x, scale, softcap, has_softcap), -float("inf"))
        higher = tl.maximum(peaks, x)
        sums = sums * tl.exp(peaks - higher) + tl.exp(x - higher)
        peaks = higher
    largest = tl.max(peaks, axis=0)
    partition = largest + tl.log(tl.sum(sums * tl.exp(peaks - largest), axis=0))
    known = (label >= 0) & (label < vocab_size)
    picked = tl.load(logits + label, mask=known, other=float("nan")).to(tl.float32)
    picked = _capped(picked, scale, softcap, has_softcap)
    tl.store(losses + row, partition - picked + z_loss * partition * partition)
    if gradient:
        # Every thread has read the label's logit before any overwrites it.
        tl.debug_barrier()
        weight = 1.0 + 2.0 * z_loss * partition
        for start in range(0, vocab_size, block):
            inside = start + columns < vocab_size
            x = tl.load(logits + start + columns, mask=inside, other=0.0).to(tl.float32)
            x = _capped(x, scale, softcap, has_softcap)
            slope = tl.exp(x - partition) * weight
            slope = tl.where(start + columns == label, slope - 1.0, slope)
            if has_softcap:
                slope *= 1.0 - (x / softcap) * (x / softcap)
            tl.store(logits + start + columns, slope * slope_scale, mask=inside)
