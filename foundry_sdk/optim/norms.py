"""L2 norms of many tensors at once, whole ones also where a tensor is spread over ranks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of ``tensor``, sharing its memory; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the L2 norm of each whole tensor, in order, without waiting for the device.

    Collective where tensors are ``DTensor``s: one reduction for each way they are spread.

    Args:
        tensors: plain tensors or ``DTensor``s of any shapes; mixed devices are fine. A ``DTensor``
            is sharded or replicated, not a pending sum.

    Returns:
        0-d tensors on each tensor's device, float32 (float64 for float64 tensors).
    """
    result: list[Tensor | None] = [None] * len(tensors)
    for indices in _alike(tensors):
        first = tensors[indices[0]]
        local = torch._foreach_norm(
            [local_part(tensors[index]).detach() for index in indices],
            ord=2,
            dtype=norm_dtype(first),
        )
        whole = torch.stack(list(local))
        if isinstance(first, DTensor):
            # Ranks along a dimension that replicates hold copies, which count once.
            whole.square_()
            sum_over_mesh(whole, first.device_mesh, [way.is_shard() for way in first.placements])
            whole.sqrt_()
        for index, norm in zip(indices, whole.unbind(), strict=True):
            result[index] = norm
    return [norm for norm in result if norm is not None]


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm over all elements of all tensors: 0-d, on the first one's device.

    Collective as :func:`norms`. No tensors: 0 on the CPU.
    """
    if not tensors:
        return torch.zeros(())
    device = tensors[0].device
    each = [norm.to(device, non_blocking=True) for norm in norms(tensors)]
    dtype = torch.float64 if any(norm.dtype == torch.float64 for norm in each) else torch.float32
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(dtype) for norm in each]))
    return total


def norm_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype that norms of ``tensor`` are computed in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def sum_over_mesh(values: Tensor, mesh: DeviceMesh, dimensions: Sequence[bool]) -> None:
    """Sum ``values`` in place over those dimensions of ``mesh`` that are True. Collective."""
    for dimension, summed in enumerate(dimensions):
        if summed:
            dist.all_reduce(values, group=mesh.get_group(dimension))


def _alike(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the indices of ``tensors`` grouped by device, dtype and spread.

    The order follows the tensors alone, so that every rank meets the same collectives.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, tensor in enumerate(tensors):
        spread = (
            (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else (None, None)
        )
        groups.setdefault((tensor.device, tensor.dtype, *spread), []).append(index)
    return list(groups.values())
