"""Reads an MPT's tensors in the shapes that other architectures want."""

import math
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from foundry_sdk.models.mpt.spec import MPTSpec


@attrs.frozen(kw_only=True)
class Source:
    """An MPT's tensors by name, with what its options do to them folded in.

    Attributes:
        spec: of the model.
        get: returns the whole tensor of a name (on the meta device when only shapes matter), or
            None where the model has none.
    """

    spec: MPTSpec
    get: Callable[[str], Tensor | None]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that every model of this kind has."""
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def bias(self, layer: str) -> Tensor:
        """Return a layer's bias; zeros, one per row of its weight, where it has none."""
        found = self.get(f"{layer}.bias")
        if found is not None:
            return found
        weight = self.tensor(f"{layer}.weight")
        return torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)

    def final_norm(self, part: str) -> Tensor:
        """Return ``weight`` or ``bias`` of the last norm, times the factor on the logits.

        The head is linear, so a factor on its input is the factor on its output.
        """
        layer = "transformer.norm_f"
        found = self.bias(layer) if part == "bias" else self.tensor(f"{layer}.weight")
        factor = self.spec.logit_factor
        return found if factor == 1.0 else found * factor

    def query_key_value(self, block: int, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``weight`` or ``bias`` of the three projections.

        Queries take up what ``softmax_scale`` differs from 1/sqrt(head_dim).
        """
        attention = f"transformer.blocks.{block}.attn"
        read = self.bias if part == "bias" else lambda layer: self.tensor(f"{layer}.weight")
        if self.spec.attn_config.fused_qkv:
            heads = self.spec.n_heads * self.spec.dim_per_head
            keys = self.spec.kv_heads * self.spec.dim_per_head
            query, key, value = torch.split(read(f"{attention}.Wqkv"), [heads, keys, keys])
        else:
            query, key, value = (read(f"{attention}.{name}") for name in ("Wq", "Wk", "Wv"))
        factor = self.query_factor
        return (query if factor == 1.0 else query * factor), key, value

    @property
    def query_factor(self) -> float:
        """``softmax_scale`` in units of 1/sqrt(head_dim)."""
        scale = self.spec.attn_config.softmax_scale
        return 1.0 if scale is None else scale * math.sqrt(self.spec.dim_per_head)
