"""LionW: the sign of an interpolated momentum, with decoupled weight decay."""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from foundry_sdk.optim.decoupled import (
    ParamsT,
    ScheduledOptimizer,
    by_device_and_dtype,
    check_common,
    decay,
    decay_factor,
    evaluate,
    warn_of_strong_decay,
)
from foundry_sdk.optim.norms import local_part

_BUCKET_ELEMENTS = 1 << 26
"""Foreach makes a copy of what it updates; this bounds it to 256 MiB of float32."""


class DecoupledLionW(ScheduledOptimizer):
    """Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", program 1).

    ``p *= 1 - weight_decay * lr / initial_lr``; ``p -= lr * sign(lerp(m, g, 1 - beta1))``;
    ``m = lerp(m, g, 1 - beta2)``. The decay differs from the paper's, which is multiplied by lr.
    A parameter's state is ``exp_avg``, in the parameter's dtype. On a GPU with Triton the update
    is one kernel per parameter, elsewhere foreach operations.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        fused: bool | None = None,
    ) -> None:
        """Make the optimizer over ``params``.

        Args:
            params: parameters, or groups of them with overrides.
            lr: learning rate at the schedule's peak, greater than 0.
            betas: share of the momentum in the update, and in the next momentum.
            weight_decay: see the class.
            fused: use the Triton kernel; None = on a GPU where Triton is installed.

        Raises:
            ValueError: a number is out of its range.
        """
        check_lion(lr=lr, betas=betas, weight_decay=weight_decay)
        self._fused = fused
        defaults = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay}
        super().__init__(params, defaults)
        warn_of_strong_decay(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has overloads for the same two cases
        """Update every parameter that has a gradient; return what ``closure`` returned."""
        loss = evaluate(closure)
        for group in self.param_groups:
            trained = self._trained(group)
            params = [local_part(p) for p in trained]
            grads = [local_part(p.grad) for p in trained if p.grad is not None]
            moments = [local_part(self._moment(p)) for p in trained]
            for part in by_device_and_dtype(params, grads, moments):
                self._update(*part, group=group)
        return loss

    def _moment(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(p)
        moment: Tensor = state["exp_avg"]
        return moment

    def _update(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        moments: list[Tensor],
        *,
        group: dict[str, Any],
    ) -> None:
        beta1, beta2 = group["betas"]
        if self._fused if self._fused is not None else params[0].is_cuda and has_triton():
            from foundry_sdk.optim.lion_kernel import fused_lion

            keep = decay_factor(group)
            fused_lion(params, grads, moments, keep=keep, lr=group["lr"], betas=(beta1, beta2))
            return
        decay(params, group)
        for bucket in buckets(params, grads, moments):
            foreach_lion(*bucket, lr=group["lr"], beta1=beta1, beta2=beta2)


@functools.cache
def has_triton() -> bool:
    """Say whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def check_lion(*, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
    """Check what every Lion takes.

    Raises:
        ValueError: a number is out of its range.
    """
    check_common(lr=lr, betas=betas, weight_decay=weight_decay)
    if lr == 0:
        raise ValueError("lr must be greater than 0 for Lion, whose update has no size of its own")


def foreach_lion(
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
) -> None:
    """Update parameters and momentum in place, without weight decay."""
    updates = torch._foreach_lerp(moments, grads, 1 - beta1)
    torch._foreach_sign_(updates)
    torch._foreach_add_(params, updates, alpha=-lr)
    torch._foreach_lerp_(moments, grads, 1 - beta2)


def buckets(*lists: list[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Yield the parallel ``lists`` in runs of at most ``_BUCKET_ELEMENTS`` elements (or one)."""
    start, size = 0, 0
    for index, tensor in enumerate(lists[0]):
        if index > start and size + tensor.numel() > _BUCKET_ELEMENTS:
            yield tuple(tensors[start:index] for tensors in lists)
            start, size = index, 0
        size += tensor.numel()
    if start < len(lists[0]):
        yield tuple(tensors[start:] for tensors in lists)
