"""One of two gloo ranks: clip and update a model of DTensors, and write the whole results.

Arguments: rank, file to meet at, file to write (rank 0).
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from foundry_sdk.optim import AdamW, DecoupledAdaLRLion, DecoupledClipLion, DecoupledLionW
from foundry_sdk.specs.run import GradientClippingSpec
from foundry_sdk.training.clipping import clip_gradients

SHAPES = [(5, 3), (7,), (2, 3, 4), (1, 2)]
WAYS = {
    "rows": [[Shard(0)]] * 4,
    "columns": [[Shard(1)], [Shard(0)], [Shard(1)], [Shard(1)]],
    "copies": [[Replicate()]] * 4,
    "mixed": [[Shard(1)], [Replicate()], [Shard(0)], [Shard(0)]],
}
CLIPS = [("norm", 0.5), ("norm", 1e6), ("value", 0.1), ("adaptive", 0.3), (None, 0.0)]
OPTIMIZERS = [AdamW, DecoupledLionW, DecoupledAdaLRLion, DecoupledClipLion]


def values():
    generator = torch.Generator().manual_seed(11)
    return [
        (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
        for shape in SHAPES
    ]


def clip_all(wrap):
    """Return {case: norm and clipped gradients}; ``wrap(index, tensor)`` spreads a tensor."""
    results = {}
    for kind, threshold in CLIPS:
        parameters = []
        for index, (weight, gradient) in enumerate(values()):
            p = nn.Parameter(wrap(index, weight))
            p.grad = wrap(index, gradient)
            parameters.append(p)
        spec = None
        if kind is not None:
            spec = GradientClippingSpec(clipping_type=kind, clipping_threshold=threshold)
        norm = clip_gradients(parameters, spec)
        results[f"{kind} {threshold}"] = [norm, *(whole(p.grad) for p in parameters)]
    return results


def train_all(spread):
    """Return {optimizer: parameters after three clipped steps}; ``spread(model)`` shards it."""
    results = {}
    for cls in OPTIMIZERS:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        spread(model)
        optimizer = cls(model.parameters(), lr=1e-2, weight_decay=1e-4)
        for step in range(3):
            data = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
            model(data).square().sum().backward()
            clip_gradients(model.parameters(), GradientClippingSpec(clipping_threshold=0.3))
            optimizer.step()
            optimizer.zero_grad()
        results[cls.__name__] = [whole(p.detach()) for p in model.parameters()]
    return results


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main():
    rank, meeting, output = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    results = {
        way: clip_all(lambda i, t, ways=ways: distribute_tensor(t, mesh, ways[i]))
        for way, ways in WAYS.items()
    }
    results["train"] = train_all(lambda model: fully_shard(model, mesh=mesh))
    if rank == 0:
        torch.save(results, output)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
