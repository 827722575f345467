"""Norms: in float32, or in the precision of the surrounding autocast region."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own short name

from foundry_sdk.models.mpt.spec import MPTSpec


class LowPrecisionLayerNorm(nn.LayerNorm):
    """LayerNorm whose input and output are in autocast's precision.

    The mean and variance are still accumulated in float32 by the kernel.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return the normalised input, in the autocast dtype where autocast is on."""
        device = input.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(input)
        dtype = torch.get_autocast_dtype(device)
        weight = self.weight.to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(device, enabled=False):
            return F.layer_norm(input.to(dtype), self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019) without bias, computed in float32.

    Args:
        size: of the last dimension.
        eps: added to the mean square.
        low_precision: whether input and output take autocast's precision.
    """

    def __init__(self, size: int, *, eps: float, low_precision: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.low_precision = low_precision

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised hidden states (..., size)."""
        device = hidden_states.device.type
        if self.low_precision and torch.is_autocast_enabled(device):
            hidden_states = hidden_states.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            exact = torch.promote_types(hidden_states.dtype, torch.float32)
            wide = hidden_states.to(exact)
            scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
            return (wide * scale * self.weight.to(exact)).to(hidden_states.dtype)


def make_norm(spec: MPTSpec, size: int) -> nn.Module:
    """Return the norm that ``norm_type`` names, over ``size`` dimensions."""
    if spec.is_rms:
        low = spec.norm_type == "low_precision_rmsnorm"
        return RMSNorm(size, eps=spec.norm_eps, low_precision=low)
    kind = LowPrecisionLayerNorm if spec.norm_type == "low_precision_layernorm" else nn.LayerNorm
    return kind(size, eps=spec.norm_eps, bias=not spec.no_bias)
