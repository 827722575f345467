"""The MPT decoder: embeddings, pre-norm blocks, head."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own short name

from foundry_sdk.batch import Batch
from foundry_sdk.models.language_model import LanguageModel
from foundry_sdk.models.mpt.attention import Attention, AttentionInputsMaker
from foundry_sdk.models.mpt.cache import KeyValueCache
from foundry_sdk.models.mpt.initial import initialize
from foundry_sdk.models.mpt.kernels import AttentionInputs, check_implementation
from foundry_sdk.models.mpt.norms import make_norm
from foundry_sdk.models.mpt.recompute import recomputed_layers
from foundry_sdk.models.mpt.spec import MPTSpec


def activation(spec: MPTSpec) -> Callable[[Tensor], Tensor]:
    """Return the function that ``ffn_act_fn`` names; exact gelu where it names none."""
    options = dict(spec.ffn_config.ffn_act_fn or {"name": "gelu", "approximate": "none"})
    name = options.pop("name")
    if name == "quick_gelu":
        return quick_gelu
    function: Callable[..., Tensor] = getattr(F, name)
    return partial(function, **options)


def quick_gelu(hidden_states: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x) (Hendrycks and Gimpel 2016, section 2)."""
    return hidden_states * torch.sigmoid(1.702 * hidden_states)


class FeedForward(nn.Module):
    """``mptmlp``: down(act(up(x))); ``mptglu``: down(act(gate(x)) * up(x))."""

    def __init__(self, spec: MPTSpec) -> None:
        super().__init__()
        bias = not spec.no_bias
        self.act = activation(spec)
        self.gate_proj: nn.Linear | None = None
        if spec.ffn_config.ffn_type == "mptglu":
            self.gate_proj = nn.Linear(spec.d_model, spec.ffn_size, bias=bias)
        self.up_proj = nn.Linear(spec.d_model, spec.ffn_size, bias=bias)
        self.down_proj = nn.Linear(spec.ffn_size, spec.d_model, bias=bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return (B, S, H) of normalised hidden states (B, S, H)."""
        if self.gate_proj is None:
            inner = self.act(self.up_proj(hidden_states))
        else:
            inner = self.act(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        output: Tensor = self.down_proj(inner)
        return output


class Block(nn.Module):
    """x + drop(attention(norm(x))), then x + drop(feed-forward(norm(x)))."""

    def __init__(self, spec: MPTSpec) -> None:
        super().__init__()
        self.norm_1 = make_norm(spec, spec.d_model)
        self.attn = Attention(spec)
        self.norm_2 = make_norm(spec, spec.d_model)
        self.ffn = FeedForward(spec)
        self.dropout = spec.resid_pdrop

    def forward(self, hidden_states: Tensor, inputs: AttentionInputs) -> Tensor:
        """Return (B, S, H)."""
        hidden_states = hidden_states + self._drop(self.attn(self.norm_1(hidden_states), inputs))
        return hidden_states + self._drop(self.ffn(self.norm_2(hidden_states)))

    def decode(
        self,
        hidden_states: Tensor,
        inputs: AttentionInputs,
        *,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Return (B, T, H) of new tokens; see ``Attention.decode``."""
        normed = self.norm_1(hidden_states)
        hidden_states = hidden_states + self.attn.decode(
            normed, inputs, slots=slots, keys=keys, values=values
        )
        return hidden_states + self._drop(self.ffn(self.norm_2(hidden_states)))

    def _drop(self, branch: Tensor) -> Tensor:
        return F.dropout(branch, self.dropout, self.training) if self.dropout else branch


class Transformer(nn.Module):
    """The parts between token ids and hidden states, under the names of MPT checkpoints."""

    def __init__(self, spec: MPTSpec) -> None:
        super().__init__()
        self.wte = nn.Embedding(spec.vocab_size, spec.d_model)
        self.wpe: nn.Embedding | None = None
        if spec.learned_positions:
            self.wpe = nn.Embedding(spec.max_seq_len, spec.d_model)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.n_layers))
        self.norm_f = make_norm(spec, spec.d_model)


class MPT(LanguageModel):
    """A causal language model of the MPT family.

    Args:
        spec: of the model.
        device: ``"cpu"``, ``"cuda"``, ``"meta"`` …; values are not initialised.

    Raises:
        SpecError: ``attn_impl`` cannot train this model on ``device``.
    """

    def __init__(self, spec: MPTSpec, *, device: str) -> None:
        super().__init__()
        kind = torch.device(device).type
        if kind not in {"meta", "cpu"}:
            check_implementation(spec.attn_config, kind, spec.dim_per_head)
        self.spec = spec
        self.vocab_size = spec.vocab_size
        self._inputs = AttentionInputsMaker(spec)
        with torch.device("meta"):
            self.transformer = Transformer(spec)
            self.lm_head: nn.Linear | None = None
            if not spec.tie_word_embeddings:
                self.lm_head = nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        if kind != "meta":
            self.to_empty(device=device)

    def forward(self, batch: Batch) -> Tensor:
        """Return hidden states (sequences, S, H) after the final norm.

        Raises:
            ValueError: the sequences are too long, padded on the left, or packed where the spec
                does not keep documents apart (and the other way round in training).
            SpecError: ``attn_impl`` cannot train this model on this device.
        """
        length = batch.input_ids.shape[1]
        self._check_length(length)
        if batch.attention_mask is not None:
            _refuse_left_padding(batch.attention_mask)
        positions = torch.arange(length, device=batch.input_ids.device)[None]
        places = positions if batch.position_ids is None else batch.position_ids
        hidden_states = self._embed(batch.input_ids, places)
        inputs = self._inputs.for_sequences(
            positions,
            self._documents(batch),
            places=places,
            dtype=self.transformer.wte.weight.dtype,
            attention_dtype=_compute_dtype(hidden_states),
        )
        for block in self.transformer.blocks:
            hidden_states = block(hidden_states, inputs)
        final: Tensor = self.transformer.norm_f(hidden_states)
        return final

    def decode(self, input_ids: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        """Return hidden states (B, T, H) of tokens that follow those in ``cache``.

        Args:
            input_ids: int64 (B, T).
            positions: int64 (B, T), of each token in its sequence; the cache's slot too.
            cache: keys and values so far; written in place.
        """
        hidden_states = self._embed(input_ids, positions)
        dtype = self.transformer.wte.weight.dtype
        inputs = self._inputs.for_cache(positions, cache.room, dtype=dtype)
        pages = zip(cache.keys, cache.values, strict=True)
        for block, (keys, values) in zip(self.transformer.blocks, pages, strict=True):
            hidden_states = cast("Block", block).decode(
                hidden_states, inputs, slots=positions, keys=keys, values=values
            )
        final: Tensor = self.transformer.norm_f(hidden_states)
        return final

    def new_cache(self, sequences: int, room: int) -> KeyValueCache:
        """Return an empty cache for ``sequences`` rows of at most ``room`` tokens."""
        self._check_length(room)
        return KeyValueCache.empty(self.spec, sequences, room, like=self.transformer.wte.weight)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return logits (..., V) of hidden states (..., H)."""
        logits = F.linear(hidden_states, self.head_weight())
        scale, cap = self.head_scale(), self.head_softcap()
        if scale != 1.0:
            logits = logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def head_weight(self) -> Tensor:
        """Return the weight (V, H) of the head: the token embeddings' own tensor when tied."""
        return self.transformer.wte.weight if self.lm_head is None else self.lm_head.weight

    def head_scale(self) -> float:
        """Return ``logit_scale`` as a number."""
        return self.spec.logit_factor

    def head_softcap(self) -> float | None:
        """Return ``final_logit_softcapping``."""
        return self.spec.final_logit_softcapping

    def max_sequence_length(self) -> int | None:
        """Return ``max_seq_len``; None with dynamic RoPE scaling, which goes beyond."""
        return self.spec.max_sequence_length()

    def blocks(self) -> list[nn.Module]:
        """Return the decoder blocks."""
        return list(self.transformer.blocks)

    def recomputed_blocks(self) -> list[nn.Module]:
        """Return the blocks that ``activation_checkpointing_target`` names."""
        blocks = self.blocks()
        target = self.spec.activation_checkpointing_target
        return [blocks[layer] for layer in recomputed_layers(target, len(blocks))]

    def init_weights(self, seed: int) -> None:
        """Fill every parameter as ``init_config`` says."""
        initialize(self, self.spec, seed)

    def config(self) -> dict[str, Any]:
        """Return the spec as YAML would say it."""
        return {"name": self.spec.kind, **attrs.asdict(self.spec)}

    def _embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden_states = F.embedding(input_ids, self.transformer.wte.weight)
        if self.transformer.wpe is not None:
            hidden_states = hidden_states + F.embedding(positions, self.transformer.wpe.weight)
        share = self.spec.embedding_fraction
        if share < 1:
            hidden_states = share * hidden_states + (1 - share) * hidden_states.detach()
        return F.dropout(hidden_states, self.spec.emb_pdrop, self.training)

    def _check_length(self, length: int) -> None:
        longest = self.spec.max_sequence_length()
        if longest is not None and length > longest:
            raise ValueError(f"sequences of {length} tokens, but model.max_seq_len is {longest}")

    def _documents(self, batch: Batch) -> Tensor | None:
        """Return the document numbers that attention must respect."""
        isolate = self.spec.attn_config.attn_uses_sequence_id
        if batch.sequence_ids is not None and not isolate:
            raise ValueError(
                "the batch has several documents per row, which this model would let see each "
                "other; set model.attn_config.attn_uses_sequence_id: true"
            )
        if batch.sequence_ids is None and isolate and self.training:
            raise ValueError(
                "model.attn_config.attn_uses_sequence_id is true, but the data does not say which "
                "document a token is of; set the loader's eos_token_id or packing_ratio"
            )
        return batch.sequence_ids


def _compute_dtype(hidden_states: Tensor) -> torch.dtype:
    """Return what linear layers will compute in: autocast's dtype where it is on."""
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden_states.dtype


def _refuse_left_padding(attention_mask: Tensor) -> None:
    """Refuse a real token after padding; on a GPU without waiting for the answer.

    Right padding needs no mask: with causal attention no real token sees what comes after it.
    """
    kept = (attention_mask[:, :-1] | ~attention_mask[:, 1:]).all()
    if kept.device.type == "cpu":
        if not kept:
            raise ValueError("a row is padded on the left or in the middle; pad on the right")
    elif kept.device.type != "meta":
        torch._assert_async(kept, "a row is padded on the left; pad on the right")
