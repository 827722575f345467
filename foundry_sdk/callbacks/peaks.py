"""Peak arithmetic rates of accelerators, for model FLOPs utilization (MFU)."""

import re
from collections.abc import Mapping
from typing import Final

_HOPPER_SXM: Final = {"fp8": 1.979e15, "bf16": 989.5e12, "fp16": 989.5e12, "fp32": 67e12}
_HOPPER_PCIE: Final = {"fp8": 1.513e15, "bf16": 756.5e12, "fp16": 756.5e12, "fp32": 51e12}

# Pattern of the device's name, rates in FLOP/s without sparsity, from the makers' data sheets
# (half of a number that is given with sparsity). The first match counts.
_DEVICES: Final[tuple[tuple[str, Mapping[str, float]], ...]] = (
    (r"\bg?b200\b", {"fp8": 4.5e15, "bf16": 2.25e15, "fp16": 2.25e15}),
    (r"\bg?h200\b", _HOPPER_SXM),
    (r"\bh100\b.*(\bhbm3\b|\bsxm)", _HOPPER_SXM),
    (r"\bh100\b.*(\bpcie\b|\bhbm2e\b)", _HOPPER_PCIE),
    (r"\ba100\b", {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12}),
    (r"\ba10\b", {"bf16": 125e12, "fp16": 125e12, "fp32": 31.2e12}),
    (r"\bv100\b.*\bsxm", {"fp16": 125e12, "fp32": 15.7e12}),
    (r"\bv100\b.*\bpcie\b", {"fp16": 112e12, "fp32": 14e12}),
    (r"\bt4\b", {"fp16": 65e12, "fp32": 8.1e12}),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return a device's dense peak rate in FLOP/s at a spec's precision; None where unknown.

    Args:
        device_name: as CUDA names it, such as ``"NVIDIA H100 80GB HBM3"``.
        precision: ``fp32``, ``amp_bf16``, ``amp_fp16`` or ``amp_fp8``; autocast runs the matrix
            products, nearly all of the arithmetic, in the type it is named after.
    """
    for pattern, rates in _DEVICES:
        if re.search(pattern, device_name.lower()):
            return rates.get(precision.removeprefix("amp_"))
    return None
