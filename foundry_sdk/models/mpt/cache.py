"""Keys and values of tokens already read, for decoding one token at a time."""

import attrs
import torch
from torch import Tensor

from foundry_sdk.models.mpt.spec import MPTSpec


@attrs.frozen(kw_only=True, eq=False)
class KeyValueCache:
    """One pair of tensors per block, written in place.

    Attributes:
        keys: each (B, room, kv heads, head_dim).
        values: as ``keys``.
        room: tokens per row.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    room: int

    @classmethod
    def empty(cls, spec: MPTSpec, sequences: int, room: int, *, like: Tensor) -> "KeyValueCache":
        """Return a cache of zeros with the device and dtype of ``like``."""
        shape = (sequences, room, spec.kv_heads, spec.dim_per_head)

        def pages() -> tuple[Tensor, ...]:
            return tuple(
                torch.zeros(shape, device=like.device, dtype=like.dtype)
                for _ in range(spec.n_layers)
            )

        return cls(keys=pages(), values=pages(), room=room)
