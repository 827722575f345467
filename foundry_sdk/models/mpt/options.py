"""The nested options of ``mpt_causal_lm``: attention, feed-forward network, initial values."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
from attrs import validators

_Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]

ACTIVATIONS: Final = (
    "celu",
    "elu",
    "gelu",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "mish",
    "quick_gelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
)
"""Names of ``torch.nn.functional`` that act element by element, and ``quick_gelu``."""


def one_of(*choices: str, absent: Mapping[str, str] | None = None) -> _Validator:
    """Return a validator for a name; ``absent`` maps known but missing names to a remedy."""

    def check(_: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:  # noqa: ANN401
        if value in choices:
            return
        if absent and value in absent:
            raise ValueError(f"{attribute.name} {value!r} is not supported here; {absent[value]}")
        raise ValueError(f"{attribute.name} must be one of {', '.join(choices)}, got {value!r}")

    return check


def share(_: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:  # noqa: ANN401
    """Refuse what is no share from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must lie in [0, 1], got {value!r}")


def positive_or_none(_: Any, attribute: "attrs.Attribute[Any]", value: float | None) -> None:  # noqa: ANN401
    """Refuse zero, negative and infinite numbers."""
    if value is not None and not 0 < value < float("inf"):
        raise ValueError(f"{attribute.name} must be a number > 0, got {value!r}")


def only(allowed: Any, why: str) -> _Validator:  # noqa: ANN401
    """Return a validator for a key of LLM Foundry of which one value can be meant here."""

    def check(_: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:  # noqa: ANN401
        if value != allowed:
            raise ValueError(f"{attribute.name}: only {allowed!r} is supported here; {why}")

    return check


@attrs.frozen(kw_only=True)
class RopeDailSpec:
    """``rope_dail_config``: rotary embeddings as flash-attn computes them.

    The rotation is the same as ``rope_impl: hf`` without scaling, and so is the code.
    """

    type: str = attrs.field(
        default="original",
        validator=one_of(
            "original", absent={"xpos": "use 'original', or rope_impl: hf with a scaling type"}
        ),
    )
    pos_idx_in_fp32: bool = attrs.field(
        default=True, validator=only(True, "positions and angles are never rounded to 16 bits")
    )
    xpos_scale_base: int = attrs.field(default=512, validator=only(512, "it belongs to xpos"))


@attrs.frozen(kw_only=True)
class RopeHFSpec:
    """``rope_hf_config``: how rotary frequencies are stretched.

    Attributes:
        type: ``no_scaling``; ``linear``: positions divided by ``factor``; ``dynamic``: sequences
            longer than ``max_seq_len`` are allowed and theta grows with them (NTK-aware);
            ``llama3``: low frequencies divided by ``factor``, high ones kept (Llama 3.1).
        factor: of the scaling.
        low_freq_factor, high_freq_factor, original_max_position_embeddings: of ``llama3``.
    """

    type: str = attrs.field(
        default="no_scaling", validator=one_of("no_scaling", "linear", "dynamic", "llama3")
    )
    factor: float = attrs.field(default=1.0, validator=positive_or_none)
    low_freq_factor: float | None = attrs.field(default=None, validator=positive_or_none)
    high_freq_factor: float | None = attrs.field(default=None, validator=positive_or_none)
    original_max_position_embeddings: int | None = attrs.field(
        default=None, validator=positive_or_none
    )

    def __attrs_post_init__(self) -> None:
        llama3 = (
            self.low_freq_factor,
            self.high_freq_factor,
            self.original_max_position_embeddings,
        )
        if self.type == "llama3":
            if None in llama3:
                raise ValueError(
                    "rope_hf_config type llama3 needs low_freq_factor, high_freq_factor and "
                    "original_max_position_embeddings"
                )
            if self.low_freq_factor == self.high_freq_factor:
                raise ValueError("low_freq_factor and high_freq_factor must differ")
        elif any(value is not None for value in llama3):
            raise ValueError(
                "low_freq_factor, high_freq_factor and original_max_position_embeddings belong "
                f"to type llama3, not to {self.type!r}"
            )
        if self.type == "no_scaling" and self.factor != 1.0:
            raise ValueError(f"factor {self.factor} needs a scaling type other than no_scaling")


@attrs.frozen(kw_only=True)
class AttentionTemperatureSpec:
    """``attn_temperature_tuning``: queries grow with the logarithm of their position.

    ``q *= 1 + attn_scale * log(1 + floor((position + 1) / floor_scale))``, as in Llama 4.
    """

    floor_scale: float = attrs.field(default=8192, validator=positive_or_none)
    attn_scale: float = attrs.field(default=0.0, validator=validators.ge(0.0))


@attrs.frozen(kw_only=True)
class AttentionSpec:
    """``attn_config``.

    Attributes:
        attn_impl: ``flash`` (fused kernels), ``flex`` (``torch.nn.attention.flex_attention``) or
            ``torch`` (explicit matrices; for tests and small models).
        sliding_window_size: a query sees the keys at most this far back; -1 = all.
        kv_n_heads: key and value heads of grouped-query attention.
    """

    attn_type: str = attrs.field(
        default="multihead_attention",
        validator=one_of("multihead_attention", "multiquery_attention", "grouped_query_attention"),
    )
    attn_pdrop: float = attrs.field(default=0.0, validator=share)
    attn_impl: str = attrs.field(
        default="flash",
        validator=one_of(
            "flash", "flex", "torch", absent={"triton": "use 'flash', or 'flex' with ALiBi"}
        ),
    )
    qk_ln: bool = False
    qk_gn: bool = False
    fused_qkv: bool = True
    clip_qkv: float | None = attrs.field(default=None, validator=positive_or_none)
    softmax_scale: float | None = attrs.field(default=None, validator=positive_or_none)
    attn_uses_sequence_id: bool = False
    sliding_window_size: int = -1
    attn_logit_softcapping: float | None = attrs.field(default=None, validator=positive_or_none)
    alibi: bool = False
    alibi_bias_max: float = attrs.field(default=8, validator=positive_or_none)
    rope: bool = False
    nope: bool = attrs.field(
        default=False, validator=only(False, "it belongs in block_overrides, which are not")
    )
    rope_theta: float = attrs.field(default=10000, validator=positive_or_none)
    rope_impl: str = attrs.field(default="dail", validator=one_of("dail", "hf"))
    rope_dail_config: RopeDailSpec = attrs.field(factory=RopeDailSpec)
    rope_hf_config: RopeHFSpec = attrs.field(factory=RopeHFSpec)
    attn_temperature_tuning: AttentionTemperatureSpec = attrs.field(
        factory=AttentionTemperatureSpec
    )
    kv_dim: int | None = attrs.field(
        default=None, validator=only(None, "keys and values come from the same hidden states")
    )
    kv_n_heads: int | None = attrs.field(default=None, validator=positive_or_none)

    def __attrs_post_init__(self) -> None:
        if self.qk_ln and self.qk_gn:
            raise ValueError("qk_ln and qk_gn cannot both be on")
        if self.alibi and self.rope:
            raise ValueError("alibi and rope cannot both be on")
        if self.sliding_window_size != -1 and self.sliding_window_size < 1:
            raise ValueError(
                f"sliding_window_size must be -1 or >= 1, got {self.sliding_window_size}"
            )
        if self.attn_type == "grouped_query_attention" and self.kv_n_heads is None:
            raise ValueError("attn_type grouped_query_attention needs kv_n_heads")
        if self.attn_type == "multiquery_attention" and self.kv_n_heads not in {None, 1}:
            raise ValueError("multiquery_attention has kv_n_heads 1; grouped_query_attention more")
        if not self.rope and self.rope_hf_config != RopeHFSpec():
            raise ValueError("rope_hf_config has an effect only with rope: true")
        if self.rope and self.rope_impl == "dail" and self.rope_hf_config != RopeHFSpec():
            raise ValueError("rope_hf_config has an effect only with rope_impl: hf")


def _known_activation(
    _: Any,  # noqa: ANN401
    attribute: "attrs.Attribute[Any]",
    value: Mapping[str, Any] | None,
) -> None:
    if value is None:
        return
    name = value.get("name")
    if name not in ACTIVATIONS:
        raise ValueError(
            f"{attribute.name}.name must be one of {', '.join(ACTIVATIONS)}, got {name!r}"
        )
    if name == "quick_gelu" and len(value) > 1:
        raise ValueError(f"{attribute.name}: quick_gelu takes no further arguments")


def _current_name(ffn_type: str) -> str:
    """Return the name that ``mptgeglu`` has today."""
    return "mptglu" if ffn_type == "mptgeglu" else ffn_type


@attrs.frozen(kw_only=True)
class FFNSpec:
    """``ffn_config``.

    Attributes:
        ffn_type: ``mptmlp``: down(act(up(x))); ``mptglu``: down(act(gate(x)) * up(x)).
        ffn_hidden_size: None = ``d_model * expansion_ratio``.
        ffn_act_fn: ``{name: ...}`` of ``torch.nn.functional`` with its keyword arguments, or
            ``quick_gelu``; None = gelu, exact.
    """

    ffn_type: str = attrs.field(
        default="mptmlp",
        converter=_current_name,
        validator=one_of(
            "mptmlp",
            "mptglu",
            absent=dict.fromkeys(
                ("te_ln_mlp", "torch_dmoe", "mb_moe", "mb_dmoe"), "use 'mptmlp' or 'mptglu'"
            ),
        ),
    )
    ffn_hidden_size: int | None = attrs.field(default=None, validator=positive_or_none)
    ffn_act_fn: Mapping[str, Any] | None = attrs.field(default=None, validator=_known_activation)


SCHEMES: Final = (
    "default_",
    "baseline_",
    "small_init_",
    "neox_init_",
    "kaiming_uniform_",
    "kaiming_normal_",
    "xavier_uniform_",
    "xavier_normal_",
)
"""Names of ``init_config.name``."""


@attrs.frozen(kw_only=True)
class InitSpec:
    """``init_config``: how weights are drawn.

    Attributes:
        name: the scheme, one of ``SCHEMES``.
        fan_mode: of kaiming, ``fan_in`` or ``fan_out``.
        init_nonlinearity: whose gain kaiming takes.
        init_div_is_residual: True: residual projections are divided by sqrt(2 * n_layers); a
            number: by that; False: not.
        emb_init_std, emb_init_uniform_lim: embeddings' own normal or uniform distribution.
        init_std: of ``baseline_``.
        init_gain: slope ``a`` of kaiming, gain of xavier.
    """

    name: str = attrs.field(default="kaiming_normal_", validator=one_of(*SCHEMES))
    fan_mode: str = attrs.field(default="fan_in", validator=one_of("fan_in", "fan_out"))
    init_nonlinearity: str = attrs.field(
        default="relu",
        validator=one_of("relu", "leaky_relu", "tanh", "sigmoid", "linear", "selu"),
    )
    init_div_is_residual: bool | float = True
    emb_init_std: float | None = attrs.field(default=None, validator=positive_or_none)
    emb_init_uniform_lim: float | tuple[float, float] | None = None
    init_std: float | None = attrs.field(default=None, validator=positive_or_none)
    init_gain: float = 0.0

    def __attrs_post_init__(self) -> None:
        if self.name == "baseline_" and self.init_std is None:
            raise ValueError("init_config: baseline_ needs init_std")
        if self.name != "baseline_" and self.init_std is not None:
            raise ValueError(f"init_std belongs to baseline_, not to {self.name}")
        if self.name.startswith("xavier") and self.init_gain == 0:
            raise ValueError(f"init_config: {self.name} needs init_gain; 0 would draw only zeros")
        if not isinstance(self.init_div_is_residual, bool) and self.init_div_is_residual <= 0:
            raise ValueError("init_div_is_residual must be true, false or a number > 0")
        if self.emb_init_std is not None and self.emb_init_uniform_lim is not None:
            raise ValueError("emb_init_std and emb_init_uniform_lim cannot both be given")
        limits = self.emb_init_uniform_lim
        if isinstance(limits, tuple) and limits[0] >= limits[1]:
            raise ValueError(f"emb_init_uniform_lim: {limits[0]} is not below {limits[1]}")
