"""``mpt_causal_lm``: the fields, their checks, and the counts that follow from them."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs

from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.models.mpt.options import (
    AttentionSpec,
    FFNSpec,
    InitSpec,
    one_of,
    only,
    positive_or_none,
    share,
)
from foundry_sdk.models.mpt.recompute import recomputed_layers

if TYPE_CHECKING:
    from foundry_sdk.models.mpt.model import MPT


@attrs.frozen(kw_only=True)
class MPTSpec(ModelSpec):
    """A decoder in the MPT family: pre-norm blocks, learned, ALiBi or rotary positions.

    Names and defaults are LLM Foundry's, except ``attn_config.softmax_scale``, which defaults to
    1/sqrt(head_dim).

    Attributes:
        pretrained_model_name_or_path: begin from the MPT of a run or of one of its checkpoints, of
            an exported folder, or of the hub (mosaicml/mpt-7b). Its config is in the folder: what
            is left at its default here is as it is there, and what is not must agree. Dropout,
            ``init_config``, ``embedding_fraction``, ``attn_impl``, ``attn_uses_sequence_id`` and
            which blocks are recomputed are said here, as no weight depends on them.
        pretrained: take the weights; else only the config, and new initial values.
        revision: commit, branch or tag of the hub.
        head_dim: None = ``d_model // n_heads``.
        logit_scale: factor on the logits, or ``inv_sqrt_d_model``.
        no_bias: no bias in any linear layer or norm.
        attention_bias: bias of the query, key and value projections; None = ``not no_bias``.
        embedding_fraction: share of the gradient that reaches the embeddings (GLM-130B).
        activation_checkpointing_target: which blocks ``fsdp_config.activation_checkpointing``
            recomputes; see ``recomputed_layers``. None = all.
        init_device: where LLM Foundry would build the model; assembly decides it here.
    """

    kind = "mpt_causal_lm"
    without_effect = MappingProxyType(
        {"use_cache": "generation always keeps keys and values, training never"}
    )

    d_model: int = attrs.field(default=2048, validator=positive_or_none)
    n_heads: int = attrs.field(default=16, validator=positive_or_none)
    n_layers: int = attrs.field(default=24, validator=positive_or_none)
    head_dim: int | None = attrs.field(default=None, validator=positive_or_none)
    expansion_ratio: float = attrs.field(default=4, validator=positive_or_none)
    max_seq_len: int = attrs.field(default=2048, validator=positive_or_none)
    vocab_size: int = attrs.field(default=50368, validator=positive_or_none)
    resid_pdrop: float = attrs.field(default=0.0, validator=share)
    emb_pdrop: float = attrs.field(default=0.0, validator=share)
    learned_pos_emb: bool = True
    attn_config: AttentionSpec = attrs.field(factory=AttentionSpec)
    ffn_config: FFNSpec = attrs.field(factory=FFNSpec)
    init_device: str = attrs.field(default="cpu", validator=one_of("cpu", "meta", "mixed"))
    logit_scale: float | str | None = None
    no_bias: bool = False
    attention_bias: bool | None = None
    embedding_fraction: float = 1.0
    norm_type: str = attrs.field(
        default="low_precision_layernorm",
        validator=one_of(
            "layernorm",
            "low_precision_layernorm",
            "rmsnorm",
            "low_precision_rmsnorm",
            "triton_rmsnorm",
        ),
    )
    norm_eps: float = attrs.field(default=1e-5, validator=positive_or_none)
    init_config: InitSpec = attrs.field(factory=InitSpec)
    fc_type: str | Mapping[str, Any] = "torch"
    tie_word_embeddings: bool = True
    use_pad_tok_in_ffn: bool = attrs.field(
        default=True, validator=only(True, "padding passes the feed-forward network; no loss")
    )
    block_overrides: Mapping[str, Any] | None = attrs.field(
        default=None, validator=only(None, "every block has the same layers")
    )
    final_logit_softcapping: float | None = attrs.field(default=None, validator=positive_or_none)
    activation_checkpointing_target: Any = None
    pretrained_model_name_or_path: str | None = None
    pretrained: bool = True
    revision: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.pretrained_model_name_or_path is not None:
            return  # most of it is in the folder; what is made of both is checked when it is read
        for name, given in (("pretrained", not self.pretrained), ("revision", self.revision)):
            if given:
                raise ValueError(f"{name} has an effect only with pretrained_model_name_or_path")
        recomputed_layers(self.activation_checkpointing_target, self.n_layers)
        if self.head_dim is None and self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}")
        if self.n_heads % self.kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is not divisible by kv_n_heads {self.kv_heads}"
            )
        if self.attn_config.attn_type == "multihead_attention" and (
            self.attn_config.kv_n_heads not in {None, self.n_heads}
        ):
            raise ValueError("kv_n_heads needs attn_type: grouped_query_attention")
        if not 0 < self.embedding_fraction <= 1:
            raise ValueError(
                f"embedding_fraction must lie in (0, 1], got {self.embedding_fraction}"
            )
        if isinstance(self.logit_scale, str) and self.logit_scale != "inv_sqrt_d_model":
            raise ValueError(
                f"logit_scale must be a number or 'inv_sqrt_d_model', got {self.logit_scale!r}"
            )
        if self.attn_config.rope and self.dim_per_head % 2:
            raise ValueError(f"rope needs an even head dimension, got {self.dim_per_head}")
        fc_type = self.fc_type if isinstance(self.fc_type, str) else self.fc_type.get("name")
        if fc_type != "torch" or not (isinstance(self.fc_type, str) or len(self.fc_type) == 1):
            raise ValueError(f"fc_type {self.fc_type!r} is not supported here; use 'torch'")
        if self.ffn_config.ffn_hidden_size is None:
            size = self.d_model * self.expansion_ratio
            if size != int(size):
                raise ValueError(
                    f"d_model * expansion_ratio must be whole, got {self.d_model} * "
                    f"{self.expansion_ratio} = {size}"
                )

    @property
    def dim_per_head(self) -> int:
        """Dimensions of one query, key or value head."""
        return self.head_dim if self.head_dim is not None else self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and of values."""
        if self.attn_config.attn_type == "multihead_attention":
            return self.n_heads
        return self.attn_config.kv_n_heads or 1

    @property
    def ffn_size(self) -> int:
        """Hidden size of the feed-forward network."""
        return self.ffn_config.ffn_hidden_size or int(self.d_model * self.expansion_ratio)

    @property
    def qkv_bias(self) -> bool:
        """Whether the query, key and value projections have a bias."""
        return not self.no_bias if self.attention_bias is None else self.attention_bias

    @property
    def learned_positions(self) -> bool:
        """Whether there is a table of positions; ALiBi and RoPE take its place."""
        return self.learned_pos_emb and not (self.attn_config.alibi or self.attn_config.rope)

    @property
    def is_rms(self) -> bool:
        """Whether norms are root-mean-square norms."""
        return self.norm_type.endswith("rmsnorm")

    @property
    def logit_factor(self) -> float:
        """The factor on the logits as a number."""
        if self.logit_scale is None:
            return 1.0
        if isinstance(self.logit_scale, str):
            return 1 / math.sqrt(self.d_model)
        return float(self.logit_scale)

    def notes(self) -> tuple[str, ...]:
        """Return what of the spec is replaced or has no effect, one line each."""
        lines = []
        if self.learned_pos_emb and not self.learned_positions:
            other = "ALiBi" if self.attn_config.alibi else "RoPE"
            lines.append(f"model.learned_pos_emb: off, positions come from {other}")
        if self.norm_type == "triton_rmsnorm":
            lines.append("model.norm_type: triton_rmsnorm is computed as rmsnorm")
        return tuple(lines)

    def parameters(self) -> int:
        """Return the number of parameters; a tied head counts once."""
        if self.pretrained_model_name_or_path is not None:
            return self.described().parameters()
        d, heads, size = self.d_model, self.n_heads * self.dim_per_head, self.ffn_size
        kv = self.kv_heads * self.dim_per_head
        norm = d * (1 if self.is_rms or self.no_bias else 2)
        bias = 0 if self.no_bias else 1
        attention = (heads + 2 * kv) * (d + int(self.qkv_bias)) + d * (heads + bias)
        if self.attn_config.qk_ln or self.attn_config.qk_gn:
            whole = self.attn_config.qk_ln
            per = (heads + kv) if whole else 2 * self.dim_per_head
            attention += per * norm // d
        ups = 2 if self.ffn_config.ffn_type == "mptglu" else 1
        ffn = ups * size * (d + bias) + d * (size + bias)
        embeddings = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        positions = self.max_seq_len * d if self.learned_positions else 0
        return embeddings + positions + self.n_layers * (attention + ffn + 2 * norm) + norm

    def flops_per_token(self, sequence_length: int) -> int:
        """Return LLM Foundry's count: 6 N + 12 n_layers d_model S.

        Attention is counted in full, not halved for causality; norms and activations not at all.
        """
        if self.pretrained_model_name_or_path is not None:
            return self.described().flops_per_token(sequence_length)
        attention = self.n_layers * 2 * 2 * self.d_model * sequence_length
        return 3 * (2 * self.parameters() + attention)

    def check_device(self, device_type: str) -> None:
        """Refuse an ``attn_impl`` that cannot train this model on such a device.

        Raises:
            SpecError: naming the ones that can.
        """
        from foundry_sdk.models.mpt.kernels import check_implementation

        described = self.described()
        check_implementation(described.attn_config, device_type, described.dim_per_head)

    def described(self) -> "MPTSpec":
        """Return the whole description: this spec, or what the folder that it names makes of it.

        Raises:
            SpecError: there is no MPT, or the folder's differs from what is said here.
        """
        if self.pretrained_model_name_or_path is None:
            return self
        from foundry_sdk.models.mpt.pretrained import find_origin

        return find_origin(self).spec

    def max_sequence_length(self) -> int | None:
        """Return ``max_seq_len``; None with dynamic RoPE scaling, which goes beyond.

        None also where a folder says it: the model knows it once it is built.
        """
        if self.pretrained_model_name_or_path is not None:
            return None
        attention = self.attn_config
        dynamic = attention.rope and attention.rope_hf_config.type == "dynamic"
        return None if dynamic else self.max_seq_len

    def isolates_documents(self) -> bool:
        """Return ``attn_config.attn_uses_sequence_id``."""
        return self.attn_config.attn_uses_sequence_id

    def vocabulary(self) -> int | None:
        """Return ``vocab_size``; None where a folder says it."""
        return self.vocab_size if self.pretrained_model_name_or_path is None else None

    def build(self, *, device: str) -> "MPT":
        """Return the model with float32 parameters of no particular values on ``device``."""
        if self.pretrained_model_name_or_path is not None:
            from foundry_sdk.models.mpt.pretrained import build_pretrained

            return build_pretrained(self, device=device)
        from foundry_sdk.models.mpt.model import MPT

        return MPT(self, device=device)
