"""Which transformers architecture computes the same function as an MPT, and its tensors."""

from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk.errors import ExportError
from foundry_sdk.models.mpt.layouts import LAYOUTS, Counterpart, own_layout
from foundry_sdk.models.mpt.spec import MPTSpec

_ACTIVATIONS: Final = {
    "gelu": "gelu",
    "hardswish": "hardswish",
    "leaky_relu": "leaky_relu",
    "mish": "mish",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "tanh": "tanh",
}
"""Names of ``torch.nn.functional`` and transformers' for the same function."""

_Nearest = tuple[str, dict[str, Any], list[str]]
"""Name and config of an architecture, and what keeps it from being equal."""


@attrs.frozen(kw_only=True)
class Architecture:
    """A transformers class with the config and tensors that make it equal to an MPT.

    Attributes:
        name: such as ``GPT2LMHeadModel``.
        config: of ``config.json``, without token ids.
        tensors: all of them.
        code: a modelling file that the architecture needs, to be copied beside the weights.
    """

    name: str
    config: dict[str, Any]
    tensors: tuple[Counterpart, ...]
    code: Path | None = None

    @property
    def folded(self) -> bool:
        """Whether weights are multiplied by a factor, which rounds them once more."""
        return any(block.factor != 1.0 for each in self.tensors for block in each.blocks)


def architecture_of(spec: MPTSpec) -> Architecture:
    """Return the architecture that computes what ``spec`` computes.

    Raises:
        ExportError: there is none; the message lists every option that stands in the way.
    """
    attention = spec.attn_config
    if attention.rope:
        gated = spec.ffn_config.ffn_type == "mptglu"
        choose = _llama if spec.is_rms and gated else _gpt_neox
    elif attention.alibi:
        choose = _mpt
    else:
        choose = _gpt2
    name, config, obstacles = choose(spec)
    obstacles = [*_obstacles_everywhere(spec), *obstacles]
    if obstacles:
        raise ExportError(
            f"no transformers architecture computes the same as this model; {name} is the "
            "nearest, but:\n"
            + "\n".join(f"  {obstacle}" for obstacle in obstacles)
            + "\ncustom code (--custom-code) can be exported beside the weights instead"
        )
    return Architecture(name=name, config=config, tensors=LAYOUTS[name](spec))


def custom_architecture(spec: MPTSpec) -> Architecture:
    """Return an architecture for any MPT, which brings its own code."""
    code = Path(__file__).with_name("modeling_foundry_mpt.py")
    config = {
        "model_type": "foundry_mpt",
        "auto_map": {
            "AutoConfig": f"{code.stem}.FoundryMPTConfig",
            "AutoModelForCausalLM": f"{code.stem}.FoundryMPTForCausalLM",
        },
        "mpt": attrs.asdict(spec),
    }
    return Architecture(
        name="FoundryMPTForCausalLM", config=config, tensors=own_layout(spec), code=code
    )


def _obstacles_everywhere(spec: MPTSpec) -> list[str]:
    attention = spec.attn_config
    tuned = attention.attn_temperature_tuning.attn_scale != 0
    used = {
        "final_logit_softcapping": spec.final_logit_softcapping is not None,
        "attn_config.attn_logit_softcapping": attention.attn_logit_softcapping is not None,
        "attn_config.qk_ln": attention.qk_ln,
        "attn_config.qk_gn": attention.qk_gn,
        "attn_config.sliding_window_size": attention.sliding_window_size != -1,
        "attn_config.attn_temperature_tuning": tuned,
    }
    return [f"model.{name} has no counterpart" for name, there in used.items() if there]


def _plain_shape(spec: MPTSpec) -> list[str]:
    """Return what keeps ``spec`` from the layers of GPT-2, GPT-NeoX and MPT."""
    obstacles = []
    if spec.kv_heads != spec.n_heads:
        obstacles.append(f"model.attn_config.kv_n_heads {spec.kv_heads}: heads share no keys there")
    if spec.n_heads * spec.dim_per_head != spec.d_model:
        obstacles.append(f"model.head_dim {spec.dim_per_head} is not d_model / n_heads")
    if spec.is_rms:
        obstacles.append(f"model.norm_type {spec.norm_type}: its norms are layer norms")
    if spec.ffn_config.ffn_type != "mptmlp":
        obstacles.append(f"model.ffn_config.ffn_type {spec.ffn_config.ffn_type}: it has no gate")
    return obstacles


def _no_clip(spec: MPTSpec) -> list[str]:
    clipped = spec.attn_config.clip_qkv is not None
    return ["model.attn_config.clip_qkv has no counterpart"] if clipped else []


def _activation(spec: MPTSpec) -> tuple[str, list[str]]:
    """Return transformers' name of the activation, and the obstacle if it has none."""
    options = dict(spec.ffn_config.ffn_act_fn or {"name": "gelu"})
    options.pop("inplace", None)
    name = options.pop("name")
    if name == "gelu" and options.pop("approximate", "none") == "tanh":
        return "gelu_pytorch_tanh", []
    if options or name not in _ACTIVATIONS:
        return "gelu", [f"model.ffn_config.ffn_act_fn {name} {options or ''} has no counterpart"]
    return _ACTIVATIONS[name], []


def _rope(spec: MPTSpec) -> dict[str, Any]:
    """Return rotary options under the keys of transformers 4 and of 5."""
    attention = spec.attn_config
    theta = float(attention.rope_theta)
    scaling: dict[str, Any] | None = None
    if attention.rope_impl == "hf" and attention.rope_hf_config.type != "no_scaling":
        chosen = attrs.asdict(attention.rope_hf_config)
        kind = chosen.pop("type")
        scaling = {"rope_type": kind, **{k: v for k, v in chosen.items() if v is not None}}
    parameters = {**(scaling or {"rope_type": "default"}), "rope_theta": theta}
    return {"rope_theta": theta, "rope_scaling": scaling, "rope_parameters": parameters}


def _mpt(spec: MPTSpec) -> _Nearest:
    obstacles = _plain_shape(spec)
    if not spec.no_bias or spec.qkv_bias:
        obstacles.append("model.no_bias: its layers have no bias, and ALiBi exists only there")
    if spec.ffn_size != 4 * spec.d_model:
        obstacles.append(f"a hidden size of {spec.ffn_size}: its is always 4 * d_model")
    if spec.attn_config.alibi_bias_max != 8:
        obstacles.append(f"model.attn_config.alibi_bias_max {spec.attn_config.alibi_bias_max}")
    activation, unknown = _activation(spec)
    if activation != "gelu" or unknown:
        obstacles.append("model.ffn_config.ffn_act_fn: its activation is always exact gelu")
    config = {
        "model_type": "mpt",
        "d_model": spec.d_model,
        "n_heads": spec.n_heads,
        "n_layers": spec.n_layers,
        "expansion_ratio": 4,
        "max_seq_len": spec.max_seq_len,
        "vocab_size": spec.vocab_size,
        "layer_norm_epsilon": spec.norm_eps,
        "learned_pos_emb": False,
        "no_bias": True,
        "attn_config": {
            "model_type": "",
            "alibi": True,
            "clip_qkv": spec.attn_config.clip_qkv,
            "softmax_scale": spec.attn_config.softmax_scale,
        },
    }
    return "MptForCausalLM", config, obstacles


def _gpt2(spec: MPTSpec) -> _Nearest:
    activation, unknown = _activation(spec)
    obstacles = _plain_shape(spec) + _no_clip(spec) + unknown
    if not spec.learned_positions:
        obstacles.append("model.learned_pos_emb false: it always has learned positions")
    config = {
        "model_type": "gpt2",
        "n_embd": spec.d_model,
        "n_head": spec.n_heads,
        "n_layer": spec.n_layers,
        "n_inner": spec.ffn_size,
        "n_positions": spec.max_seq_len,
        "vocab_size": spec.vocab_size,
        "activation_function": activation,
        "layer_norm_epsilon": spec.norm_eps,
        "resid_pdrop": spec.resid_pdrop,
        "embd_pdrop": spec.emb_pdrop,
        "attn_pdrop": spec.attn_config.attn_pdrop,
    }
    return "GPT2LMHeadModel", config, obstacles


def _gpt_neox(spec: MPTSpec) -> _Nearest:
    activation, unknown = _activation(spec)
    rope = _rope(spec)
    config = {
        "model_type": "gpt_neox",
        "hidden_size": spec.d_model,
        "num_attention_heads": spec.n_heads,
        "num_hidden_layers": spec.n_layers,
        "intermediate_size": spec.ffn_size,
        "max_position_embeddings": spec.max_seq_len,
        "vocab_size": spec.vocab_size,
        "hidden_act": activation,
        "layer_norm_eps": spec.norm_eps,
        "attention_bias": True,
        "use_parallel_residual": False,
        "rotary_pct": 1.0,
        "rotary_emb_base": rope["rope_theta"],
        "rope_scaling": rope["rope_scaling"],
        "rope_parameters": {**rope["rope_parameters"], "partial_rotary_factor": 1.0},
        "attention_dropout": spec.attn_config.attn_pdrop,
        "hidden_dropout": spec.resid_pdrop,
    }
    if config["rope_scaling"] is not None:
        config["rope_scaling"] = config["rope_parameters"]
    return "GPTNeoXForCausalLM", config, _plain_shape(spec) + _no_clip(spec) + unknown


def _llama(spec: MPTSpec) -> _Nearest:
    activation, unknown = _activation(spec)
    obstacles = _no_clip(spec) + unknown
    if spec.d_model % spec.n_heads:
        obstacles.append(f"d_model {spec.d_model} is not divisible by n_heads {spec.n_heads}")
    config = {
        "model_type": "llama",
        "hidden_size": spec.d_model,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.dim_per_head,
        "num_hidden_layers": spec.n_layers,
        "intermediate_size": spec.ffn_size,
        "max_position_embeddings": spec.max_seq_len,
        "vocab_size": spec.vocab_size,
        "hidden_act": activation,
        "rms_norm_eps": spec.norm_eps,
        "attention_bias": spec.qkv_bias or not spec.no_bias,
        "mlp_bias": not spec.no_bias,
        "attention_dropout": spec.attn_config.attn_pdrop,
        **_rope(spec),
    }
    if config["rope_scaling"] is not None:
        config["rope_scaling"] = config["rope_parameters"]
    return "LlamaForCausalLM", config, obstacles
