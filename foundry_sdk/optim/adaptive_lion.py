"""Two Lions that notice when a parameter's gradients leap, and hold back."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from foundry_sdk.optim.decoupled import (
    ParamsT,
    ScheduledOptimizer,
    by_device_and_dtype,
    decay,
    decay_factor,
    evaluate,
    warn_of_strong_decay,
)
from foundry_sdk.optim.lionw import buckets, check_lion, foreach_lion
from foundry_sdk.optim.norms import local_part, norms

HISTORY: Final = 1000
"""Norms that are remembered of each parameter."""

DELAY: Final = 500
"""The newest norms, the present one included, that do not enter the mean."""


class _NormWatchingLion(ScheduledOptimizer, ABC):
    """The frame of both: state, and where an outlier is found, without waiting for the device.

    A parameter's state is ``step`` (float32, 0-d, on the parameter's device), ``exp_avg`` and
    ``norm_history`` (``HISTORY``,), both in the parameter's dtype.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has overloads for the same two cases
        """Update every parameter that has a gradient; return what ``closure`` returned.

        Collective where parameters are spread over ranks.
        """
        loss = evaluate(closure)
        for group in self.param_groups:
            trained = self._trained(group)
            for (part,) in by_device_and_dtype(trained):
                for (bucket,) in buckets(part):
                    self._update(bucket, [self._state(p, group) for p in bucket], group)
        return loss

    def _state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(p)
            state["norm_history"] = torch.zeros(HISTORY, dtype=p.dtype, device=p.device)
            state |= self._more_state(p, group)
            self.state[p] = state
        return state

    @abstractmethod
    def _more_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return the state of ``p`` besides the common one, before the first step."""

    @abstractmethod
    def _update(
        self, params: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        """Update ``params``, of one device and dtype, and their ``states``."""


class DecoupledAdaLRLion(_NormWatchingLion):
    """Lion that lowers a parameter's learning rate for a while after its momentum leapt.

    A step is an outlier for a parameter when the norm of its new momentum exceeds
    ``outlier_threshold`` times the mean of that norm between 1000 and 500 steps ago. The learning
    rate is multiplied by ``lr_penalty`` for each outlier of the last ``timeout`` steps, by
    ``min_scale`` at least. Weight decay follows that learning rate. State besides the common one:
    ``outliers`` (timeout + 1,), 1 where one of the last steps was an outlier.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        outlier_threshold: float = 10.0,
        timeout: int = 100,
        lr_penalty: float = 0.707,
        min_scale: float = 1e-4,
    ) -> None:
        """Make the optimizer over ``params``; see the class for the arguments.

        Raises:
            ValueError: a number is out of its range.
        """
        check_lion(lr=lr, betas=betas, weight_decay=weight_decay)
        check_adaptive(outlier_threshold=outlier_threshold)
        if timeout < 1:
            raise ValueError(f"timeout must be at least 1 step, got {timeout!r}")
        for name, value in (("lr_penalty", lr_penalty), ("min_scale", min_scale)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be greater than 0 and at most 1, got {value!r}")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "weight_decay": weight_decay,
            "outlier_threshold": outlier_threshold,
            "timeout": timeout,
            "lr_penalty": lr_penalty,
            "min_scale": min_scale,
        }
        super().__init__(params, defaults)
        warn_of_strong_decay(self)

    def _more_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"outliers": torch.zeros(group["timeout"] + 1, dtype=p.dtype, device=p.device)}

    def _update(
        self, params: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        beta1, beta2 = group["betas"]
        local = [local_part(p) for p in params]
        grads = [local_part(p.grad) for p in params if p.grad is not None]
        moments = [local_part(state["exp_avg"]) for state in states]
        updates = torch._foreach_lerp(moments, grads, 1 - beta1)
        torch._foreach_sign_(updates)
        torch._foreach_lerp_(moments, grads, 1 - beta2)
        observed = torch.stack(norms([state["exp_avg"] for state in states]))
        steps = torch.stack([state["step"] for state in states])
        outlier, _ = record_and_judge(observed, steps, states, group["outlier_threshold"])
        recent = torch.stack([state["outliers"] for state in states])
        recent[torch.arange(len(recent)), (steps % recent.shape[1]).long()] = outlier.to(recent)
        _write_back(states, "outliers", recent)
        count = recent.to(observed.dtype).sum(dim=1)
        scale = (group["lr_penalty"] ** count).clamp(min=group["min_scale"])
        keep = 1 - (1 - decay_factor(group)) * scale
        torch._foreach_mul_(local, list(keep.unbind()))
        torch._foreach_mul_(updates, list(scale.unbind()))
        torch._foreach_add_(local, updates, alpha=-group["lr"])
        torch._foreach_add_([state["step"] for state in states], 1.0)


class DecoupledClipLion(_NormWatchingLion):
    """Lion that clips a parameter's gradient where its norm leapt.

    A step is an outlier for a parameter when its gradient's norm exceeds ``outlier_threshold``
    times the mean of that norm between 1000 and 500 steps ago; the gradient is then scaled down to
    just that. State besides the common one: ``clipped_batches``, how often that happened.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        outlier_threshold: float = 5.0,
    ) -> None:
        """Make the optimizer over ``params``; see the class for the arguments.

        Raises:
            ValueError: a number is out of its range.
        """
        check_lion(lr=lr, betas=betas, weight_decay=weight_decay)
        check_adaptive(outlier_threshold=outlier_threshold)
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "weight_decay": weight_decay,
            "outlier_threshold": outlier_threshold,
        }
        super().__init__(params, defaults)
        warn_of_strong_decay(self)

    def _more_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        del group
        return {"clipped_batches": torch.zeros((), dtype=p.dtype, device=p.device)}

    def _update(
        self, params: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        beta1, beta2 = group["betas"]
        local = [local_part(p) for p in params]
        gradients = [p.grad for p in params if p.grad is not None]
        observed = torch.stack(norms(gradients))
        steps = torch.stack([state["step"] for state in states])
        outlier, mean = record_and_judge(observed, steps, states, group["outlier_threshold"])
        limit = group["outlier_threshold"] * mean / observed
        scale = torch.where(outlier, limit, torch.ones_like(limit))
        # p.grad itself is left as it was: callbacks may still read it.
        clipped = torch._foreach_mul([local_part(g) for g in gradients], list(scale.unbind()))
        moments = [local_part(state["exp_avg"]) for state in states]
        decay(local, group)
        foreach_lion(local, list(clipped), moments, lr=group["lr"], beta1=beta1, beta2=beta2)
        counts = torch.stack([state["clipped_batches"] for state in states])
        _write_back(states, "clipped_batches", counts + outlier.to(counts.dtype))
        torch._foreach_add_([state["step"] for state in states], 1.0)


def check_adaptive(*, outlier_threshold: float) -> None:
    """Check the one number that both take.

    Raises:
        ValueError: it is not greater than 0.
    """
    if not outlier_threshold > 0:
        raise ValueError(f"outlier_threshold must be greater than 0, got {outlier_threshold!r}")


def record_and_judge(
    observed: Tensor, steps: Tensor, states: list[dict[str, Any]], threshold: float
) -> tuple[Tensor, Tensor]:
    """Put this step's norms into ``norm_history`` and say which are outliers.

    Args:
        observed: (parameters,), the norms of this step.
        steps: float (parameters,), updates that each parameter has had before.
        states: of the parameters, in the same order.
        threshold: see the optimizers.

    Returns:
        bool (parameters,), False while there is no mean yet; and the means (NaN there).
    """
    history = torch.stack([state["norm_history"] for state in states])
    now = (steps % HISTORY).long()
    history[torch.arange(len(history)), now] = observed.to(history.dtype)
    _write_back(states, "norm_history", history)
    slots = torch.arange(HISTORY, device=history.device)
    age = (now[:, None] - slots) % HISTORY
    old = (age >= DELAY) & (age <= steps[:, None])
    mean = (history.to(observed.dtype) * old).sum(dim=1) / old.sum(dim=1)
    return observed > threshold * mean, mean


def _write_back(states: list[dict[str, Any]], name: str, rows: Tensor) -> None:
    torch._foreach_copy_([state[name] for state in states], list(rows.unbind()))
