"""Initial values that depend on nothing but the run's seed and a parameter's name."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch
from torch import Tensor

_MOST_AT_ONCE: Final = 8

Draw = Callable[[Tensor, torch.Generator], object]
"""Fills a float32 CPU tensor in place from a generator."""


def parameter_seed(seed: int, name: str) -> int:
    """Return the generator seed of one parameter, from 0 to 2**63 - 1."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrappers (compile, checkpointing) put into it."""
    wrappers = {"_orig_mod", "_checkpoint_wrapped_module"}
    return ".".join(part for part in name.split(".") if part not in wrappers)


Drawn = tuple[Tensor, str, Draw]
"""A parameter (a ``DTensor`` of which this rank keeps its shard, or ordinary), its name in the
unwrapped model, and how the whole of it is drawn."""


def draw_parameters(drawn: Sequence[Drawn], *, seed: int) -> None:
    """Fill each parameter with its part of values drawn whole, in float32, on the CPU.

    Each has its own generator, so several are drawn at once, and the order does not matter.
    """

    def draw_whole(item: Drawn) -> Tensor:
        parameter, name, draw = item
        whole = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
        generator = torch.Generator().manual_seed(parameter_seed(seed, plain_name(name)))
        draw(whole, generator)
        return whole

    workers = min(_MOST_AT_ONCE, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for start in range(0, len(drawn), workers):  # bounds the memory to a few whole tensors
            group = drawn[start : start + workers]
            for (parameter, _, _), whole in zip(group, pool.map(draw_whole, group), strict=True):
                copy_shard(parameter, whole)


@torch.no_grad()
def copy_shard(parameter: Tensor, whole: Tensor) -> None:
    """Copy ``whole`` into ``parameter``; into a ``DTensor`` this rank's part, without messages."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        parameter.copy_(whole)
        return
    local = parameter.to_local()
    placed = distribute_tensor(
        whole.to(local.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
    local.copy_(placed.to_local())
