"""Self-attention of one block, and what all blocks share in one forward."""

from collections.abc import Callable

import attrs
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from foundry_sdk.models.mpt.kernels import (
    HAS_VARLEN,
    AttentionInputs,
    AttentionOptions,
    Kernel,
    attend,
    check_implementation,
    explicit_attention,
    unsupported,
)
from foundry_sdk.models.mpt.norms import make_norm
from foundry_sdk.models.mpt.positions import (
    alibi_slopes,
    query_temperature,
    rope_frequencies,
    rotary_tables,
    rotate,
)
from foundry_sdk.models.mpt.spec import MPTSpec


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query causal self-attention.

    ``Wqkv`` holds the rows of all query heads, then of all key heads, then of all value heads.
    """

    def __init__(self, spec: MPTSpec) -> None:
        super().__init__()
        config = spec.attn_config
        self.head_dim = spec.dim_per_head
        self.query_size = spec.n_heads * self.head_dim
        self.key_size = spec.kv_heads * self.head_dim
        self.clip = config.clip_qkv
        self.whole_norm = config.qk_ln
        scale = config.softmax_scale
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.softcap = config.attn_logit_softcapping
        self.dropout = config.attn_pdrop
        self.fused_qkv = config.fused_qkv
        if self.fused_qkv:
            rows = self.query_size + 2 * self.key_size
            self.Wqkv = nn.Linear(spec.d_model, rows, bias=spec.qkv_bias)
        else:
            self.Wq = nn.Linear(spec.d_model, self.query_size, bias=spec.qkv_bias)
            self.Wk = nn.Linear(spec.d_model, self.key_size, bias=spec.qkv_bias)
            self.Wv = nn.Linear(spec.d_model, self.key_size, bias=spec.qkv_bias)
        self.q_ln: nn.Module | None = None
        self.k_ln: nn.Module | None = None
        if config.qk_ln or config.qk_gn:
            self.q_ln = make_norm(spec, self.query_size if config.qk_ln else self.head_dim)
            self.k_ln = make_norm(spec, self.key_size if config.qk_ln else self.head_dim)
        self.out_proj = nn.Linear(self.query_size, spec.d_model, bias=not spec.no_bias)

    def forward(self, hidden_states: Tensor, inputs: AttentionInputs) -> Tensor:
        """Return (B, S, H) of normalised hidden states (B, S, H)."""
        query, key, value = self.project(hidden_states, inputs)
        dropout = self.dropout if self.training else 0.0
        options = AttentionOptions(scale=self.scale, softcap=self.softcap, dropout=dropout)
        mixed = attend(query, key, value, inputs=inputs, options=options)
        output: Tensor = self.out_proj(mixed.flatten(2))
        return output

    def project(
        self, hidden_states: Tensor, inputs: AttentionInputs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each (B, S, its heads, head_dim)."""
        if self.fused_qkv:
            joint = self.Wqkv(hidden_states)
            if self.clip is not None:
                joint = joint.clamp(-self.clip, self.clip)
            query, key, value = joint.split((self.query_size, self.key_size, self.key_size), -1)
        else:
            query, key, value = (layer(hidden_states) for layer in (self.Wq, self.Wk, self.Wv))
            if self.clip is not None:
                query, key, value = (
                    part.clamp(-self.clip, self.clip) for part in (query, key, value)
                )
        if self.q_ln is not None and self.k_ln is not None and self.whole_norm:
            query, key = self.q_ln(query).to(value.dtype), self.k_ln(key).to(value.dtype)
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)) for part in (query, key, value)
        )
        if self.q_ln is not None and self.k_ln is not None and not self.whole_norm:
            query, key = self.q_ln(query).to(value.dtype), self.k_ln(key).to(value.dtype)
        if inputs.rotary is not None:
            query, key = rotate(query, *inputs.rotary), rotate(key, *inputs.rotary)
        if inputs.query_factor is not None:
            query = (query * inputs.query_factor).to(value.dtype)
        return query, key, value

    def decode(
        self,
        hidden_states: Tensor,
        inputs: AttentionInputs,
        *,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Return (B, T, H) for new tokens whose keys and values are first put into the cache.

        Args:
            hidden_states: (B, T, H), normalised.
            inputs: ``mask`` (B, 1, T, room) and ``bias`` of new tokens against the cache.
            slots: int64 (B, T), where in the cache each new token goes.
            keys: (B, room, kv heads, head_dim), written in place.
            values: as ``keys``.
        """
        query, key, value = self.project(hidden_states, inputs)
        rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
        keys[rows, slots] = key.to(keys.dtype)
        values[rows, slots] = value.to(values.dtype)
        mixed = explicit_attention(
            query.transpose(1, 2),
            keys.transpose(1, 2).to(query.dtype),
            values.transpose(1, 2).to(query.dtype),
            mask=inputs.mask,
            bias=inputs.bias,
            options=AttentionOptions(scale=self.scale, softcap=self.softcap),
        )
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return output


class AttentionInputsMaker:
    """Makes ``AttentionInputs`` of a model's forward.

    What is the same in each forward stays on the device: a copy from ordinary host memory waits
    for the device. It is made outside of inference mode, as training may need it afterwards.
    """

    def __init__(self, spec: MPTSpec) -> None:
        self._spec = spec
        self._block_masks: dict[tuple[int, torch.device], BlockMask] = {}
        self._constants: dict[tuple[str, int, torch.device], Tensor] = {}

    def for_sequences(
        self,
        positions: Tensor,
        sequence_ids: Tensor | None,
        *,
        places: Tensor | None = None,
        dtype: torch.dtype,
        attention_dtype: torch.dtype,
    ) -> AttentionInputs:
        """Return the inputs of whole sequences.

        Args:
            positions: int64 (1, S), in the row.
            sequence_ids: int64 (B, S) where documents are kept apart, else None.
            places: int64 (1 or B, S), in the document; None = ``positions``.
            dtype: of parameters; tables are float32 or better.
            attention_dtype: what queries will be in.

        Raises:
            SpecError: ``attn_impl`` cannot compute this on this device.
        """
        kernel = self._kernel(positions.device, sequence_ids is not None, attention_dtype)
        inputs = self._positional(positions if places is None else places, kernel, dtype)
        if kernel == "flex":
            return attrs.evolve(
                inputs,
                block_mask=self._block_mask(positions, sequence_ids),
                slopes=self._slopes(positions.device, dtype),
            )
        if kernel == "varlen" and sequence_ids is not None:
            boundaries, longest = document_boundaries(sequence_ids)
            return attrs.evolve(inputs, boundaries=boundaries, longest=longest)
        if kernel == "fused" and sequence_ids is None:
            return inputs
        mask = self.visible(positions, positions)
        if sequence_ids is not None:
            mask = mask & (sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :])
        return attrs.evolve(inputs, mask=mask, bias=self.bias(positions, positions, dtype))

    def for_cache(self, positions: Tensor, room: int, *, dtype: torch.dtype) -> AttentionInputs:
        """Return the inputs of new tokens at ``positions`` (B, T) against a cache of ``room``."""
        slots = torch.arange(room, device=positions.device)[None]
        return attrs.evolve(
            self._positional(positions, "explicit", dtype),
            mask=self.visible(positions, slots),
            bias=self.bias(positions, slots, dtype),
        )

    def visible(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return which keys each query may see, bool (1 or B, 1, T, S), of their positions."""
        distance = queries[:, None, :, None] - keys[:, None, None, :]
        window = self._spec.attn_config.sliding_window_size
        return distance >= 0 if window == -1 else (distance >= 0) & (distance <= window)

    def bias(self, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return ALiBi's bias (1 or B, heads, T, S), or None."""
        slopes = self._slopes(queries.device, dtype)
        if slopes is None:
            return None
        return slopes[:, None, None] * (keys[:, None, None, :] - queries[:, None, :, None])

    def _kernel(self, device: torch.device, documents: bool, dtype: torch.dtype) -> Kernel:
        config = self._spec.attn_config
        if torch.is_grad_enabled():
            check_implementation(config, device.type, self._spec.dim_per_head)
        if config.attn_impl == "flex" and not config.attn_pdrop:
            return "flex"
        if config.attn_impl == "flash" and "flash" not in unsupported(config, device.type):
            half = dtype in {torch.float16, torch.bfloat16}
            packed = documents and half and device.type == "cuda" and not config.attn_pdrop
            return "varlen" if packed and HAS_VARLEN else "fused"
        return "explicit"

    def _positional(self, positions: Tensor, kernel: Kernel, dtype: torch.dtype) -> AttentionInputs:
        """Return inputs with what follows from positions alone."""
        spec, config = self._spec, self._spec.attn_config
        tables = torch.promote_types(dtype, torch.float32)
        rotary = query_factor = None
        if config.rope:
            length = max(positions.shape[1], spec.max_seq_len)
            frequencies = self._constant(
                "frequencies",
                length,
                positions.device,
                lambda: rope_frequencies(
                    config,
                    head_dim=spec.dim_per_head,
                    length=length,
                    max_seq_len=spec.max_seq_len,
                ),
            )
            rotary = rotary_tables(positions, frequencies, tables)
        tuning = config.attn_temperature_tuning
        if tuning.attn_scale:
            query_factor = query_temperature(
                positions,
                floor_scale=tuning.floor_scale,
                attn_scale=tuning.attn_scale,
                dtype=tables,
            )
        return AttentionInputs(kernel=kernel, rotary=rotary, query_factor=query_factor)

    def _slopes(self, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        heads, config = self._spec.n_heads, self._spec.attn_config
        if not config.alibi:
            return None
        slopes = self._constant(
            "slopes", 0, device, lambda: alibi_slopes(heads, config.alibi_bias_max)
        )
        return slopes.to(torch.promote_types(dtype, torch.float32))

    def _constant(
        self, name: str, length: int, device: torch.device, make: Callable[[], Tensor]
    ) -> Tensor:
        """Return what ``make`` makes, on ``device``; made once per length."""
        key = (name, length, device)
        if key not in self._constants:
            with torch.inference_mode(False):
                self._constants[key] = make().to(device)
        return self._constants[key]

    def _block_mask(self, positions: Tensor, sequence_ids: Tensor | None) -> BlockMask:
        length, device = positions.shape[1], positions.device
        if sequence_ids is None and (length, device) in self._block_masks:
            return self._block_masks[length, device]
        window = self._spec.attn_config.sliding_window_size
        if sequence_ids is not None:
            return make_block_mask(length, sequence_ids, window, device)
        with torch.inference_mode(False):
            made = make_block_mask(length, None, window, device)
        self._block_masks = {(length, device): made}
        return made


def make_block_mask(
    length: int, sequence_ids: Tensor | None, window: int, device: torch.device
) -> BlockMask:
    """Return flex attention's block mask: causal, within the window, within the document."""

    def visible(batch: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = query >= key
        if window != -1:
            seen = seen & (query - key <= window)
        if sequence_ids is not None:
            seen = seen & (sequence_ids[batch, query] == sequence_ids[batch, key])
        return seen

    rows = None if sequence_ids is None else sequence_ids.shape[0]
    return create_block_mask(visible, rows, None, length, length, device=device.type)


def document_boundaries(sequence_ids: Tensor) -> tuple[Tensor, int]:
    """Return where documents start when rows are laid end to end, and the longest one's tokens.

    Waits for the device once: how many documents there are is not known beforehand.

    Args:
        sequence_ids: int64 (B, S); neighbours of one document share a number.

    Returns:
        int32 (documents + 1,), from 0 to B * S; and the longest document's tokens.
    """
    starts = torch.ones_like(sequence_ids, dtype=torch.bool)
    starts[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    first = starts.flatten().nonzero().flatten()
    boundaries = torch.cat([first, first.new_tensor([sequence_ids.numel()])])
    return boundaries.to(torch.int32), int(boundaries.diff().max())
