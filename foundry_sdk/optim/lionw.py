"""LionW: the sign of an interpolated momentum, with decoupled weight decay."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    has_triton,
    warn_of_strong_decay,
)
from foundry_sdk.optim.norms import local_part

_BUCKET_ELEMENTS = 1 << 26
"""Foreach makes a copy of what it updates; this bounds it to 256 MiB of float32."""


class DecoupledLionW(ScheduledOptimizer):
    """Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", program 1).

    ``p *= 1 - weight_decay * lr / initial_lr``; ``p -= lr * sign(lerp(m, g, 1 - beta1))``;
    ``m = lerp(m, g, 1 - beta2)``. The decay differs from the paper's, which is multiplied by lr.
    A parameter's state is ``exp_avg`` and, with ``stochastic_rounding``, ``step``. On a GPU with
    Triton the update is one kernel per parameter, elsewhere foreach operations.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        momentum_dtype: str | None = None,
        stochastic_rounding: bool = False,
        fused: bool | None = None,
    ) -> None:
        """Make the optimizer over ``params``.

        Args:
            params: parameters, or groups of them with overrides.
            lr: learning rate at the schedule's peak, greater than 0.
            betas: share of the momentum in the update, and in the next momentum.
            weight_decay: see the class.
            momentum_dtype: of ``exp_avg``: float32 or bfloat16; None = the parameter's.
            stochastic_rounding: round bfloat16 parameters up or down at random, with an exact
                expectation, so that updates far below a weight's precision are not lost (Gupta et
                al. 2015, "Deep Learning with Limited Numerical Precision", section 2).
            fused: use the Triton kernel; None = on a GPU where Triton is installed.

        Raises:
            ValueError: a number is out of its range.
        """
        check_lion(lr=lr, betas=betas, weight_decay=weight_decay)
        if momentum_dtype not in {None, "float32", "bfloat16"}:
            raise ValueError(f"momentum_dtype must be float32 or bfloat16, got {momentum_dtype!r}")
        self._fused = fused
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "weight_decay": weight_decay,
            "momentum_dtype": momentum_dtype,
            "stochastic_rounding": stochastic_rounding,
        }
        super().__init__(params, defaults)
        warn_of_strong_decay(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has overloads for the same two cases
        """Update every parameter that has a gradient; return what ``closure`` returned."""
        loss = evaluate(closure)
        for group in self.param_groups:
            self._update(self._trained(group), group, factor=None, copies={})
        return loss

    def can_guard(self) -> bool:
        """Return whether all parameters are on a GPU, where the update is one kernel."""
        params = [p for group in self.param_groups for p in group["params"]]
        return bool(params) and all(self._by_kernel(local_part(p)) for p in params)

    @torch.no_grad()
    def guarded_step(self, factor: Tensor, copies: Mapping[Tensor, Tensor]) -> None:
        """Update as ``step`` does; see :class:`foundry_sdk.optim.guarded.GuardedOptimizer`."""
        for group in self.param_groups:
            self._update(self._trained(group), group, factor=factor, copies=copies)

    def _by_kernel(self, p: Tensor) -> bool:
        return p.is_contiguous() and (
            self._fused if self._fused is not None else p.is_cuda and has_triton()
        )

    def _moment(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        if "exp_avg" not in state:
            name = group["momentum_dtype"]
            dtype = None if name is None else getattr(torch, name)
            state["exp_avg"] = torch.zeros_like(p, dtype=dtype)
        moment: Tensor = state["exp_avg"]
        return moment

    def _seeds(self, params: Sequence[Tensor], group: dict[str, Any]) -> list[int] | None:
        """Count one step, and return a seed for each parameter that no step had before."""
        if not group["stochastic_rounding"]:
            return None
        seeds = []
        for index, p in enumerate(params):
            state = self.state[p]
            state["step"] = int(state.get("step", 0)) + 1
            seeds.append((state["step"] * 1_000_003 + index * 7919) % 2**31)
        return seeds

    def _update(
        self,
        trained: Sequence[Tensor],
        group: dict[str, Any],
        *,
        factor: Tensor | None,
        copies: Mapping[Tensor, Tensor],
    ) -> None:
        seeds = self._seeds(trained, group)
        params = [local_part(p) for p in trained]
        grads = [local_part(p.grad) for p in trained if p.grad is not None]
        moments = [local_part(self._moment(p, group)) for p in trained]
        if params and all(map(self._by_kernel, params)):
            from foundry_sdk.optim.kernels import lion

            lion(
                params,
                [grad.contiguous() for grad in grads],
                moments,
                [copies.get(p) for p in trained],
                factor=factor,
                keep=decay_factor(group),
                lr=group["lr"],
                betas=group["betas"],
                seeds=seeds,
            )
        elif seeds is not None:
            for p, grad, moment, seed in zip(params, grads, moments, seeds, strict=True):
                _rounded_lion(p, grad, moment, group, seed)
        else:
            for part in by_device_and_dtype(params, grads, moments):
                decay(part[0], group)
                for bucket in buckets(*part):
                    beta1, beta2 = group["betas"]
                    foreach_lion(*bucket, lr=group["lr"], beta1=beta1, beta2=beta2)


def _rounded_lion(
    p: Tensor, grad: Tensor, moment: Tensor, group: dict[str, Any], seed: int
) -> None:
    """Update one parameter in float32, and round it and its momentum at the end."""
    beta1, beta2 = group["betas"]
    exact = p.float()
    decay([exact], group)
    wide = moment.float()
    foreach_lion([exact], [grad.float()], [wide], lr=group["lr"], beta1=beta1, beta2=beta2)
    moment.copy_(wide)
    if p.dtype is torch.bfloat16:
        generator = torch.Generator(p.device).manual_seed(seed)
        noise = torch.randint(
            2**16, exact.shape, generator=generator, device=p.device, dtype=torch.int32
        )
        exact = ((exact.view(torch.int32) + noise) & -(2**16)).view(torch.float32)
    p.copy_(exact)


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
    if moments[0].dtype != grads[0].dtype:
        wide = [moment.to(grad.dtype) for moment, grad in zip(moments, grads, strict=True)]
        foreach_lion(params, grads, wide, lr=lr, beta1=beta1, beta2=beta2)
        torch._foreach_copy_(moments, wide)
        return
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
