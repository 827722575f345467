"""Head and cross-entropy: the fused loss against the plain one, and Liger's where installed.

    python benchmarks/loss.py [--quick] [--out FOLDER]

Each row is one loss at one shape: forward and backward in milliseconds (median), peak memory over
what the inputs take, and both as ratios to the plain loss where that fits the device. On a GPU in
bfloat16, on a CPU in float32 at a small shape.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

sys.path.insert(0, str(Path(__file__).parent))
import _record

from foundry_sdk.losses.cross_entropy import CrossEntropy
from foundry_sdk.losses.fused import FusedCrossEntropy

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

GPU_SHAPES = [(32_768, 50_368, 768), (32_768, 50_368, 2048), (16_384, 128_256, 4096)]
CPU_SHAPES = [(512, 8192, 256)]
MIB = 1 << 20


def losses() -> dict[str, Loss]:
    plain, fused = CrossEntropy(), {}
    for size in (128, 256, 512, 1024, 2048) if torch.cuda.is_available() else (4, 512):
        module = FusedCrossEntropy(max_logits_bytes=size * MIB)
        fused[f"fused_{size}MiB"] = _fused(module)
    found: dict[str, Loss] = {
        "plain": lambda hidden, weight, labels: plain(hidden @ weight.t(), labels).loss_sum,
        "plain_compiled": torch.compile(
            lambda hidden, weight, labels: plain(F.linear(hidden, weight), labels).loss_sum
        ),
        **fused,
    }
    if not torch.cuda.is_available():
        del found["plain_compiled"]  # compiling needs a C++ compiler there
        return found
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return found
    liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    found["liger"] = lambda hidden, weight, labels: liger(weight, hidden, labels)
    return found


def _fused(module: FusedCrossEntropy) -> Loss:
    return lambda hidden, weight, labels: module(hidden, weight, labels).loss_sum


def measure(loss: Loss, shape: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    tokens, vocab, width = shape
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(tokens, width, device=device, dtype=dtype, generator=generator)
    weight = torch.randn(vocab, width, device=device, dtype=dtype, generator=generator) * 0.02
    labels = torch.randint(0, vocab, (tokens,), device=device, generator=generator)
    for tensor in (hidden, weight):
        tensor.requires_grad_()
    seconds, value, peak = [], 0.0, 0
    for repeat in range(repeats + 2):
        hidden.grad = weight.grad = None
        base = _reset_peak()
        begin = _now()
        output = loss(hidden, weight, labels)
        (output / tokens).backward()
        if repeat >= 2:
            seconds.append(_now() - begin)
            peak = max(peak, _peak() - base)
        value = output.item() / tokens
        del output
    return {
        "tokens": tokens,
        "vocab": vocab,
        "width": width,
        "dtype": str(dtype),
        "milliseconds": round(statistics.median(seconds) * 1e3, 3),
        "peak_mib": round(peak / MIB, 1) if device == "cuda" else None,
        "loss": value,
        "head_gradient_norm": weight.grad.float().norm().item(),
        "hidden_gradient_norm": hidden.grad.float().norm().item(),
    }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _reset_peak() -> int:
    gc.collect()
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one shape, three repeats")
    parser.add_argument("--out", type=Path, help="folder of the result")
    arguments = parser.parse_args()
    shapes = GPU_SHAPES if torch.cuda.is_available() else CPU_SHAPES
    rows = []
    for shape in shapes[:1] if arguments.quick else shapes:
        plain: dict[str, Any] = {}
        for name, loss in losses().items():
            try:
                row = {"loss_name": name, **measure(loss, shape, 3 if arguments.quick else 10)}
            except torch.OutOfMemoryError:
                row = {"loss_name": name, "shape": shape, "out_of_memory": True}
            plain = row if name == "plain" and "milliseconds" in row else plain
            if plain and "milliseconds" in row:
                row["time_ratio"] = round(row["milliseconds"] / plain["milliseconds"], 3)
                if row["peak_mib"] is not None:
                    row["memory_ratio"] = round(row["peak_mib"] / plain["peak_mib"], 3)
            rows.append(row)
            print(row, flush=True)
    print(_record.write("loss", rows, arguments.out))


if __name__ == "__main__":
    main()
