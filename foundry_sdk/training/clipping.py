"""Gradient clipping: by the global norm, element by element, or unit by unit."""

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from foundry_sdk.optim.norms import local_part, norm_dtype, norms, sum_over_mesh, total_norm
from foundry_sdk.specs.run import GradientClippingSpec

_EPSILON: Final = 1e-6
"""Added to the norm, as in ``torch.nn.utils.clip_grad_norm_``."""


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], spec: GradientClippingSpec | None) -> Tensor:
    """Clip gradients in place and return their global norm before that.

    ``norm`` scales all gradients so that their global L2 norm is at most the threshold.
    ``value`` clamps each element to [-threshold, threshold]. ``adaptive`` scales the gradient of
    each unit (a row of all but the first dimension; a whole vector) by
    min(1, threshold * ||weight|| / ||gradient||) (Brock et al. 2021, "High-Performance Large-Scale
    Image Recognition Without Normalization", equation 3, without its lower bound on the weight's
    norm: a unit whose weights are all 0 keeps them).

    Collective where parameters are spread over ranks. Nothing waits for the device.

    Args:
        parameters: of the whole model, in the same order on every rank; those without a gradient
            are passed over.
        spec: None = only the norm is computed.

    Returns:
        float32 (float64 for float64 gradients), 0-d, on the gradients' device, equal on all ranks.
    """
    trained = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in trained if p.grad is not None]
    total = total_norm(gradients)
    if spec is None or not gradients:
        return total
    local = [local_part(gradient) for gradient in gradients]
    match spec.clipping_type:
        case "norm":
            _scale(local, clip_factor(total, spec))
        case "value":
            torch._foreach_clamp_min_(local, -spec.clipping_threshold)
            torch._foreach_clamp_max_(local, spec.clipping_threshold)
        case "adaptive":
            _clip_units(trained, gradients, spec.clipping_threshold)
    return total


def clip_factor(norm: Tensor, spec: GradientClippingSpec | None) -> Tensor:
    """Return what clipping by the global ``norm`` multiplies gradients with: 0-d, on its device."""
    if spec is None:
        return torch.ones_like(norm)
    return (spec.clipping_threshold / (norm + _EPSILON)).clamp(max=1.0)


def _scale(gradients: list[Tensor], factor: Tensor) -> None:
    """Multiply all by one number that stays on the device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for gradient in gradients:
        by_device.setdefault(gradient.device, []).append(gradient)
    for device, part in by_device.items():
        torch._foreach_mul_(part, factor.to(device, non_blocking=True))


def _clip_units(parameters: list[Tensor], gradients: list[Tensor], threshold: float) -> None:
    weight_norms = _unit_norms(parameters)
    gradient_norms = _unit_norms(gradients)
    factors = [
        # 0 / 0 is NaN: a unit without gradient stays as it is.
        (threshold * weight / gradient).nan_to_num_(nan=1.0, posinf=1.0).clamp_(max=1.0)
        for weight, gradient in zip(weight_norms, gradient_norms, strict=True)
    ]
    torch._foreach_mul_([local_part(gradient) for gradient in gradients], factors)


def _unit_norms(tensors: list[Tensor]) -> list[Tensor]:
    """Return each tensor's norms of units, shaped to multiply this rank's part of it.

    A tensor of two or more dimensions has a unit for each index of the first; fewer are one unit.
    """
    whole = [index for index, tensor in enumerate(tensors) if tensor.ndim < 2]
    result = dict(zip(whole, norms([tensors[index] for index in whole]), strict=True))
    for index, tensor in enumerate(tensors):
        if tensor.ndim >= 2:
            result[index] = _row_norms(tensor)
    return [result[index] for index in range(len(tensors))]


def _row_norms(tensor: Tensor) -> Tensor:
    """Return (rows of this rank, 1, ...): the L2 norm of each whole row."""
    local = local_part(tensor).detach()
    dimensions = tuple(range(1, local.ndim))
    squares = local.to(norm_dtype(local)).square().sum(dim=dimensions, keepdim=True)
    if isinstance(tensor, DTensor):
        apart = [way.is_shard() and not way.is_shard(0) for way in tensor.placements]
        sum_over_mesh(squares, tensor.device_mesh, apart)
    return squares.sqrt()
