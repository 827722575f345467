"""Muon: momentum, made orthogonal by Newton-Schulz iterations; and AdamW for the rest."""

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from foundry_sdk.optim.contract import ParamGroups

COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5, from the publication (see ``orthogonalized``)."""

_EPS: Final = 1e-7


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """Return about U V^T of the singular value decomposition U S V^T of ``matrix``.

    Each iteration applies an odd polynomial to the singular values. Its coefficients make small
    ones grow as fast as possible; large ones end between about 0.7 and 1.2 and not at 1, which
    does no harm. Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein 2024, "Muon: An optimizer
    for hidden layers in neural networks".

    Args:
        matrix: (rows, columns); on a GPU the iterations run in bfloat16, elsewhere in the
            matrix's own dtype.
        steps: iterations; 5 in the publication.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16) if matrix.is_cuda else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x  # the smaller Gram matrix
    x = x / (x.norm() + _EPS)  # singular values at most 1
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = (x.T if tall else x).to(matrix.dtype)
    return found


class Muon(torch.optim.Optimizer):
    """Muon in groups with ``algorithm: muon``, which hold matrices alone; AdamW in the others.

    A matrix's state is ``momentum_buffer``, an average of its gradients; any other parameter's is
    ``exp_avg``, ``exp_avg_sq`` and ``step``. Matrices that are spread over ranks are gathered, one
    at a time, for their update, which every rank computes whole; only the momentum is kept, and
    that spread as the parameter is.
    """

    def __init__(self, groups: ParamGroups) -> None:
        """Take groups that have all their settings, as ``MuonSpec.build`` makes them.

        Raises:
            ValueError: a group under Muon has a parameter that is no matrix.
        """
        super().__init__(groups, {})
        for group in self.param_groups:
            shapes = [tuple(p.shape) for p in group["params"] if p.dim() != 2]
            if group["algorithm"] == "muon" and shapes:
                raise ValueError(f"Muon updates matrices alone, got a parameter of shape {shapes}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has overloads for the same two cases
        """Update every parameter that has a gradient; return what ``closure`` returned.

        Collective where matrices are spread over ranks.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = _muon if group["algorithm"] == "muon" else _adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, self.state[parameter], group)
        return loss


def _muon(parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["momentum_buffer"] = torch.zeros_like(parameter)
    momentum, mine, local = (_local(each) for each in (state["momentum_buffer"], grad, parameter))
    momentum.lerp_(mine, 1 - group["momentum"])
    ahead = mine.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
    whole = _gathered(ahead, parameter)
    update = _part(orthogonalized(whole, group["ns_steps"]), parameter)
    local.mul_(1 - group["lr"] * group["weight_decay"])
    local.add_(update, alpha=-group["lr"] * _factor(parameter, group["scale"]))


def _factor(parameter: Tensor, scale: str) -> float:
    rows, columns = parameter.shape
    if scale == "rms":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


def _adamw(parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2."""
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    state["step"] += 1
    step = int(state["step"])  # on the CPU: nothing waits
    beta1, beta2 = group["betas"]
    mine, local, first, second = (
        _local(each) for each in (grad, parameter, state["exp_avg"], state["exp_avg_sq"])
    )
    first.lerp_(mine, 1 - beta1)
    second.mul_(beta2).addcmul_(mine, mine, value=1 - beta2)
    denominator = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
    local.mul_(1 - group["lr"] * group["weight_decay"])
    local.addcdiv_(first, denominator, value=-group["lr"] / (1 - beta1**step))


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part, sharing its memory; an ordinary tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _gathered(part: Tensor, parameter: Tensor) -> Tensor:
    """Return the whole of which ``part`` is this rank's, spread as ``parameter`` is. Collective.

    Raises:
        RuntimeError: the parameter is kept in another memory than that which ranks talk through.
    """
    if not isinstance(parameter, DTensor):
        return part
    mesh = parameter.device_mesh
    if part.device.type != mesh.device_type:
        raise RuntimeError(
            f"muon gathers matrices over {mesh.device_type}, but they are kept on "
            f"{part.device.type}; leave out fsdp_config.cpu_offload, or use another optimizer"
        )
    spread = DTensor.from_local(
        part,
        mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return spread.full_tensor()


def _part(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's part of ``whole``, without messages: every rank has the same whole."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()
