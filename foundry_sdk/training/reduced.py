"""A small stand-in for a model: the same attention in fewer and narrower layers, on a CPU."""

from typing import Any, Final

import attrs

from foundry_sdk.errors import SpecError
from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec
from foundry_sdk.models.mpt.spec import MPTSpec

SMALL: Final = 20_000_000
"""Parameters up to which a model is taken as it is."""
_TOO_LARGE: Final = 500_000_000
_VOCABULARY: Final = 1024
_WIDTH: Final = 256
"""Of the feed-forward networks."""


@attrs.frozen(kw_only=True)
class StandIn:
    """A model to look at in place of another.

    Attributes:
        spec: of a decoder that a CPU runs in seconds; its weights are to be initial ones.
        about: how it differs, for people.
    """

    spec: ModelSpec
    about: str


def stand_in(spec: ModelSpec) -> StandIn | str:
    """Return a small model with the attention, positions and masks of ``spec``, or why not.

    Raises:
        SpecError: the folder that ``spec`` names is missing or has no such model.
    """
    if isinstance(spec, MPTSpec):
        return _mpt(spec.described())
    if isinstance(spec, HFCausalLMSpec):
        mpt = spec.as_mpt()
        return _transformers(spec) if mpt is None else _mpt(mpt.described())
    size = spec.parameters()
    if size is None or size > SMALL:
        return f"{spec.kind} is of a size that only the run itself looks at"
    return StandIn(spec=spec, about="the model itself with initial weights")


def _mpt(spec: MPTSpec) -> StandIn:
    attention, notes = spec.attn_config, []
    try:
        spec.check_device("cpu")
    except SpecError:
        attention = attrs.evolve(attention, attn_impl="torch")
        notes.append(f"attn_impl torch, as {spec.attn_config.attn_impl} needs a GPU")
    if spec.parameters() <= SMALL:
        own = attrs.evolve(spec, attn_config=attention)
        return StandIn(spec=own, about=", ".join(["the model itself with initial weights", *notes]))
    size, group = spec.dim_per_head, spec.n_heads // spec.kv_heads
    kv_heads = min(spec.kv_heads, 2)
    if attention.kv_n_heads is not None:
        attention = attrs.evolve(attention, kv_n_heads=kv_heads)
    small = attrs.evolve(
        spec,
        attn_config=attention,
        n_layers=min(spec.n_layers, 2),
        n_heads=group * kv_heads,
        d_model=group * kv_heads * size,
        expansion_ratio=4,
        ffn_config=attrs.evolve(spec.ffn_config, ffn_hidden_size=None),
        vocab_size=_VOCABULARY,
        activation_checkpointing_target=None,
    )
    about = f"{small.n_layers} layers of {small.n_heads} heads with initial weights"
    return StandIn(spec=small, about=", ".join([about, *notes]))


def _transformers(spec: HFCausalLMSpec) -> StandIn | str:
    from foundry_sdk.models.huggingface.source import find_source

    notes = []
    kernel = spec.attention
    if kernel is not None and kernel.startswith("flash"):
        notes.append(f"without {kernel}, which needs a GPU")
        kernel = None
    plain = attrs.evolve(
        spec,
        pretrained=False,
        peft_config=None,
        use_flash_attention_2=False,
        attn_implementation=kernel,
    )
    if plain.parameters() <= SMALL:
        return StandIn(spec=plain, about=", ".join(["the model with initial weights", *notes]))
    config = find_source(plain).config()
    if config.get_text_config() is not config:
        return "a model of text and more, of a size that only the run itself looks at"
    overrides = {**spec.config_overrides, **_smaller(config)}
    small = attrs.evolve(plain, config_overrides=overrides)
    if small.parameters() > _TOO_LARGE:
        return "layers of a size that only the run itself looks at"
    about = f"{overrides['num_hidden_layers']} lean layers with initial weights"
    return StandIn(spec=small, about=", ".join([about, *notes]))


def _smaller(config: Any) -> dict[str, Any]:  # noqa: ANN401 - a PretrainedConfig of any class
    """Return overrides for few and lean layers of each kind of attention, and few tokens."""
    kinds = getattr(config, "layer_types", None)
    layers = min(int(config.num_hidden_layers), 2)
    overrides: dict[str, Any] = {"vocab_size": _VOCABULARY}
    known = config.to_dict()
    for name in ("intermediate_size", "moe_intermediate_size"):
        if isinstance(known.get(name), int):  # no token reaches another one there
            overrides[name] = min(known[name], _WIDTH)
    if kinds:
        layers = max(layers, 1 + max(kinds.index(kind) for kind in set(kinds)))
        overrides["layer_types"] = list(kinds[:layers])
    if (config.pad_token_id or 0) >= _VOCABULARY:
        overrides["pad_token_id"] = 0  # a row of the embeddings
    return {**overrides, "num_hidden_layers": layers}
