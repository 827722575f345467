"""AdamW, with torch's weight decay and with one that is not multiplied by the learning rate."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from foundry_sdk.optim.decoupled import (
    ParamsT,
    ScheduledOptimizer,
    check_common,
    decay,
    evaluate,
    has_triton,
    warn_of_strong_decay,
)
from foundry_sdk.optim.norms import local_part


class AdamW(ScheduledOptimizer):
    """AdamW as in torch: ``p *= 1 - lr * weight_decay`` before the update of Adam.

    Kingma and Ba 2015, "Adam", algorithm 1, with the decay of Loshchilov and Hutter 2019,
    algorithm 2. On a GPU the whole update is one fused kernel, elsewhere torch's foreach
    operations; which one is decided at each step, as parameters may move after construction.
    A parameter's state is ``step``, ``exp_avg``, ``exp_avg_sq`` and, with ``amsgrad``,
    ``max_exp_avg_sq``, in the parameter's dtype.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        amsgrad: bool = False,
        fused: bool | None = None,
    ) -> None:
        """Make the optimizer over ``params``.

        Args:
            params: parameters, or groups of them with overrides.
            lr: learning rate at the schedule's peak.
            betas: decay rates of the averages of gradients and of their squares.
            eps: added to the denominator.
            weight_decay: see the class.
            amsgrad: divide by the largest second moment so far.
            fused: use torch's fused kernel; None = where all parameters of a group are on a GPU.

        Raises:
            ValueError: a number is out of its range.
        """
        check_common(lr=lr, betas=betas, weight_decay=weight_decay)
        if not (eps >= 0 and math.isfinite(eps)):
            raise ValueError(f"eps must be a finite number >= 0, got {eps!r}")
        self._fused = fused
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has overloads for the same two cases
        """Update every parameter that has a gradient; return what ``closure`` returned."""
        loss = evaluate(closure)
        for group in self.param_groups:
            self._update(self._trained(group), group)
        return loss

    def can_guard(self) -> bool:
        """Return whether the update can be one kernel of ours: on a GPU, without amsgrad."""
        return (
            self._fused is not False
            and all(
                not group["amsgrad"]
                and group["initial_lr"]
                and all(p.is_cuda and local_part(p).is_contiguous() for p in group["params"])
                for group in self.param_groups
            )
            and has_triton()
        )

    @torch.no_grad()
    def guarded_step(self, factor: Tensor, copies: Mapping[Tensor, Tensor]) -> None:
        """Update as ``step`` does; see :class:`foundry_sdk.optim.guarded.GuardedOptimizer`."""
        from foundry_sdk.optim.kernels import adamw as kernel

        for group in self.param_groups:
            params = self._trained(group)
            if not params:
                continue
            states = [self._state(p, amsgrad=False, step_on_device=True) for p in params]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, (factor == factor).to(torch.float32))  # noqa: PLR0124
            kernel(
                [local_part(p) for p in params],
                [local_part(p.grad).contiguous() for p in params if p.grad is not None],
                [(local_part(s["exp_avg"]), local_part(s["exp_avg_sq"])) for s in states],
                steps,
                [copies.get(p) for p in params],
                factor=factor,
                keep=1.0 - group["lr"] * self._weight_decay([], group),
                lr=group["lr"],
                betas=group["betas"],
                eps=group["eps"],
            )

    def _weight_decay(self, params: list[Tensor], group: dict[str, Any]) -> float:
        """Return the decay per unit of learning rate; one that has no such form is done here."""
        del params
        return float(group["weight_decay"])

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if not params:
            return
        fused = self._fused
        if fused is None:
            fused = all(p.is_cuda and p.is_floating_point() for p in params)
        states = [self._state(p, amsgrad=group["amsgrad"], step_on_device=fused) for p in params]
        beta1, beta2 = group["betas"]
        local = [local_part(p) for p in params]
        largest = [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else []
        adamw(
            local,
            [local_part(p.grad) for p in params if p.grad is not None],
            [local_part(state["exp_avg"]) for state in states],
            [local_part(state["exp_avg_sq"]) for state in states],
            [local_part(moment) for moment in largest],
            [state["step"] for state in states],
            foreach=not fused,
            fused=fused,
            amsgrad=group["amsgrad"],
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=self._weight_decay(local, group),
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, p: Tensor, *, amsgrad: bool, step_on_device: bool) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        if amsgrad and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
        # The fused kernel reads the count on the device; foreach computes with it on the host.
        device = p.device if step_on_device else torch.device("cpu")
        if state["step"].device != device:
            state["step"] = state["step"].to(device)
        return state


class DecoupledAdamW(AdamW):
    """AdamW whose decay is ``p *= 1 - weight_decay * lr / initial_lr``.

    The decay follows the schedule, not the size of the learning rate: with lr 2e-4, AdamW's
    ``weight_decay=0.1`` is ``weight_decay=2e-5`` here. The update itself is AdamW's.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 1e-5,
        *,
        amsgrad: bool = False,
        fused: bool | None = None,
    ) -> None:
        """Make the optimizer; arguments and errors are those of :class:`AdamW`."""
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad=amsgrad, fused=fused)
        warn_of_strong_decay(self)

    def _weight_decay(self, params: list[Tensor], group: dict[str, Any]) -> float:
        if not group["initial_lr"]:  # no learning rate to divide by
            decay(params, group)
            return 0.0
        return float(group["weight_decay"] / group["initial_lr"])
