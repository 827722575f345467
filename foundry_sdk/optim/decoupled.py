"""What all our optimizers share: groups with ``initial_lr``, and decoupled weight decay."""

import functools
import importlib.util
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT as ParamsT  # noqa: PLC0414 - re-exported

_log = logging.getLogger(__name__)

UNUSUAL_WEIGHT_DECAY = 1e-3
"""Decoupled decay above this is likely a value meant for AdamW, where it is multiplied by lr."""


class ScheduledOptimizer(torch.optim.Optimizer):
    """An optimizer whose groups remember their peak learning rate as ``initial_lr``."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its ``initial_lr`` is its ``lr`` unless it says otherwise."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("initial_lr", group["lr"])

    def _trained(self, group: dict[str, Any]) -> list[Tensor]:
        """Return the parameters of ``group`` that have a gradient; the others keep their values.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        trained = [p for p in group["params"] if p.grad is not None]
        if any(p.grad.is_sparse for p in trained):
            raise RuntimeError(
                f"{type(self).__name__} does not update from sparse gradients; "
                "make the embedding with sparse=False"
            )
        return trained


def evaluate(closure: Callable[[], float] | None) -> float | None:
    """Return what ``closure`` returns, with gradients enabled while it runs."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def decay_factor(group: dict[str, Any]) -> float:
    """Return what decoupled weight decay multiplies parameters with: 1 - wd * lr / initial_lr.

    The decay follows the schedule but not the size of the learning rate (Loshchilov and Hutter
    2019, "Decoupled Weight Decay Regularization", equation 5). With ``initial_lr`` 0 the
    schedule's multiplier is taken as 1.
    """
    multiplier = group["lr"] / group["initial_lr"] if group["initial_lr"] else 1.0
    return 1.0 - float(multiplier) * float(group["weight_decay"])


def decay(params: list[Tensor], group: dict[str, Any]) -> None:
    """Shrink ``params`` in place by :func:`decay_factor`."""
    factor = decay_factor(group)
    if params and factor != 1.0:
        torch._foreach_mul_(params, factor)


def check_common(*, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
    """Check what every optimizer here takes.

    Raises:
        ValueError: a number is out of its range.
    """
    if not (lr >= 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be a finite number >= 0, got {lr!r}")
    check_betas(betas)
    if not (weight_decay >= 0 and math.isfinite(weight_decay)):
        raise ValueError(f"weight_decay must be a finite number >= 0, got {weight_decay!r}")


def check_betas(betas: tuple[float, float]) -> None:
    """Check that there are two, each in [0, 1).

    Raises:
        ValueError: they are not.
    """
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")


def warn_of_strong_decay(optimizer: torch.optim.Optimizer) -> None:
    """Log a warning for each weight decay that looks as if it were meant for AdamW."""
    for value in sorted({group["weight_decay"] for group in optimizer.param_groups}):
        if value >= UNUSUAL_WEIGHT_DECAY:
            _log.warning(
                "%s: weight_decay=%g shrinks weights by %g of their size at each step at peak "
                "learning rate, for it is not multiplied by lr; AdamW's weight_decay is, so its "
                "usual values are too large here (divide by a factor of 1/lr)",
                type(optimizer).__name__,
                value,
                value,
            )


@functools.cache
def has_triton() -> bool:
    """Say whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def by_device_and_dtype(*lists: list[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Yield the parallel ``lists`` in parts whose first tensors share device and dtype.

    Foreach kernels leave their fast path for a list that mixes them.
    """
    parts: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(lists[0]):
        parts.setdefault((tensor.device, tensor.dtype), []).append(index)
    for indices in parts.values():
        yield tuple([tensors[index] for index in indices] for tensors in lists)
