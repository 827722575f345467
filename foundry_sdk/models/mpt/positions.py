"""Where a token stands: ALiBi slopes, rotary angles, attention temperature."""

import math

import torch
from torch import Tensor

from foundry_sdk.models.mpt.options import AttentionSpec, RopeHFSpec


def alibi_slopes(heads: int, bias_max: float) -> Tensor:
    """Return the slope of each head, float64 (heads,) on the CPU.

    Train Short, Test Long (Press et al. 2022), section 3: a geometric sequence over the next power
    of two of heads; other head counts take every second one first.
    """
    power = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** -(index * bias_max / power) for index in range(1, power + 1)]
    if power != heads:
        slopes = (slopes[1::2] + slopes[0::2])[:heads]
    return torch.tensor(slopes, dtype=torch.float64)


def rope_frequencies(
    attention: AttentionSpec, *, head_dim: int, length: int, max_seq_len: int
) -> Tensor:
    """Return the angle per position of each pair of dimensions, float64 (head_dim / 2,).

    RoFormer (Su et al. 2021), equation 15; stretched as ``rope_hf_config`` says.
    """
    scaling = attention.rope_hf_config if attention.rope_impl == "hf" else RopeHFSpec()
    theta = float(attention.rope_theta)
    if scaling.type == "dynamic" and length > max_seq_len:
        growth = scaling.factor * length / max_seq_len - (scaling.factor - 1)
        theta *= growth ** (head_dim / (head_dim - 2))
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = theta**-exponents
    if scaling.type == "linear":
        return frequencies / scaling.factor
    if scaling.type == "llama3":
        return _llama3(frequencies, scaling)
    return frequencies


def _llama3(frequencies: Tensor, scaling: RopeHFSpec) -> Tensor:
    """Return frequencies as Llama 3.1 stretches them: long waves fully, short ones not at all."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    trained = scaling.original_max_position_embeddings
    if low is None or high is None or trained is None:
        raise ValueError("rope_hf_config type llama3 lacks its factors")
    turns = trained * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotary_tables(
    positions: Tensor, frequencies: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine (1 or B, S, 1, head_dim / 2) of integer ``positions`` (1 or B, S)."""
    angles = positions[..., None].to(torch.float64) * frequencies.to(positions.device)
    return angles.cos().to(dtype)[:, :, None], angles.sin().to(dtype)[:, :, None]


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim / 2) of ``heads`` (B, S, heads, head_dim) by its angle.

    The arithmetic is in the tables' precision, float32 or better; the result in ``heads``'.
    """
    first, second = heads.chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, dim=-1).to(heads.dtype)


def query_temperature(
    positions: Tensor, *, floor_scale: float, attn_scale: float, dtype: torch.dtype
) -> Tensor:
    """Return the factor on queries (1 or B, S, 1, 1) that grows with the position."""
    steps = torch.floor((positions.to(torch.float64) + 1) / floor_scale)
    return (torch.log1p(steps) * attn_scale + 1).to(dtype)[:, :, None, None]
