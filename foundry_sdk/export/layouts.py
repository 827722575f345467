"""An MPT's tensors under the names, and in the shapes, of four transformers architectures.

Each function yields a name and a function that makes the tensor, so that shapes can be asked for
on the meta device, and values made one at a time.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import attrs
import torch
from torch import Tensor

from foundry_sdk.export.source import Source

Tensors = Iterator[tuple[str, Callable[[], Tensor]]]

_GPT2_LAYERS: Final = {
    "attn.out_proj": "attn.c_proj",
    "ffn.up_proj": "mlp.c_fc",
    "ffn.down_proj": "mlp.c_proj",
}
_NEOX_LAYERS: Final = {
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attn.out_proj": "attention.dense",
    "ffn.up_proj": "mlp.dense_h_to_4h",
    "ffn.down_proj": "mlp.dense_4h_to_h",
}
_WTE: Final = "transformer.wte.weight"


def mpt_tensors(source: Source) -> Tensors:
    """Yield the tensors of ``MptForCausalLM``: the names are the same, the biases are gone."""
    # softmax_scale is in its config: queries stay as they are, and so does clip_qkv's meaning
    attention = attrs.evolve(source.spec.attn_config, softmax_scale=None)
    unscaled = attrs.evolve(source, spec=attrs.evolve(source.spec, attn_config=attention))
    yield _WTE, partial(source.tensor, _WTE)
    for index in range(source.spec.n_layers):
        block = f"transformer.blocks.{index}"
        yield f"{block}.attn.Wqkv.weight", partial(_joined, unscaled, index, "weight")
        for layer in ("norm_1", "attn.out_proj", "norm_2", "ffn.up_proj", "ffn.down_proj"):
            name = f"{block}.{layer}.weight"
            yield name, partial(source.tensor, name)
    yield "transformer.norm_f.weight", partial(source.final_norm, "weight")
    yield from _head(source, "lm_head.weight")


def gpt2_tensors(source: Source) -> Tensors:
    """Yield the tensors of ``GPT2LMHeadModel``, whose linear weights are (inputs, outputs)."""
    yield _WTE, partial(source.tensor, _WTE)
    yield "transformer.wpe.weight", partial(source.tensor, "transformer.wpe.weight")
    for index in range(source.spec.n_layers):
        ours, theirs = f"transformer.blocks.{index}", f"transformer.h.{index}"
        yield from _layer(source, f"{ours}.norm_1", f"{theirs}.ln_1")
        yield from _layer(source, f"{ours}.norm_2", f"{theirs}.ln_2")
        attention = f"{theirs}.attn.c_attn"
        yield f"{attention}.weight", partial(_transposed, partial(_joined, source, index, "weight"))
        yield f"{attention}.bias", partial(_joined, source, index, "bias")
        for mine, other in _GPT2_LAYERS.items():
            weight = partial(source.tensor, f"{ours}.{mine}.weight")
            yield f"{theirs}.{other}.weight", partial(_transposed, weight)
            yield f"{theirs}.{other}.bias", partial(source.bias, f"{ours}.{mine}")
    yield from _final_norm(source, "transformer.ln_f")
    yield from _head(source, "lm_head.weight")


def gpt_neox_tensors(source: Source) -> Tensors:
    """Yield the tensors of ``GPTNeoXForCausalLM``, whose QKV rows go head by head."""
    yield "gpt_neox.embed_in.weight", partial(source.tensor, _WTE)
    for index in range(source.spec.n_layers):
        ours, theirs = f"transformer.blocks.{index}", f"gpt_neox.layers.{index}"
        for mine, other in _NEOX_LAYERS.items():
            yield from _layer(source, f"{ours}.{mine}", f"{theirs}.{other}")
        for part in ("weight", "bias"):
            name = f"{theirs}.attention.query_key_value.{part}"
            yield name, partial(_by_head, source, index, part)
    yield from _final_norm(source, "gpt_neox.final_layer_norm")
    yield from _head(source, "embed_out.weight")


def llama_tensors(source: Source) -> Tensors:
    """Yield the tensors of ``LlamaForCausalLM``: separate projections, a bias on all or none."""
    spec = source.spec
    attention_bias, mlp_bias = spec.qkv_bias or not spec.no_bias, not spec.no_bias
    linear = [("attn.out_proj", "self_attn.o_proj", attention_bias)]
    linear += [
        (f"ffn.{name}_proj", f"mlp.{name}_proj", mlp_bias) for name in ("gate", "up", "down")
    ]
    linear += [("norm_1", "input_layernorm", False), ("norm_2", "post_attention_layernorm", False)]
    yield "model.embed_tokens.weight", partial(source.tensor, _WTE)
    for index in range(spec.n_layers):
        ours, theirs = f"transformer.blocks.{index}", f"model.layers.{index}"
        for part in ("weight", "bias") if attention_bias else ("weight",):
            for place, letter in enumerate("qkv"):
                name = f"{theirs}.self_attn.{letter}_proj.{part}"
                yield name, partial(_projection, source, index, part, place)
        for mine, other, biased in linear:
            weight = partial(source.tensor, f"{ours}.{mine}.weight")
            yield f"{theirs}.{other}.weight", weight
            if biased:
                yield f"{theirs}.{other}.bias", partial(source.bias, f"{ours}.{mine}")
    yield "model.norm.weight", partial(source.final_norm, "weight")
    yield from _head(source, "lm_head.weight")


def own_tensors(source: Source) -> Tensors:
    """Yield every tensor under its own name."""
    for name, _ in source.spec.build(device="meta").named_parameters():
        yield name, partial(source.tensor, name)


def _layer(source: Source, ours: str, theirs: str) -> Tensors:
    yield f"{theirs}.weight", partial(source.tensor, f"{ours}.weight")
    yield f"{theirs}.bias", partial(source.bias, ours)


def _final_norm(source: Source, theirs: str) -> Tensors:
    for part in ("weight", "bias"):
        yield f"{theirs}.{part}", partial(source.final_norm, part)


def _head(source: Source, theirs: str) -> Tensors:
    if not source.spec.tie_word_embeddings:
        yield theirs, partial(source.tensor, "lm_head.weight")


def _joined(source: Source, index: int, part: str) -> Tensor:
    """Return all query rows, then all key rows, then all value rows."""
    return torch.cat(source.query_key_value(index, part))


def _by_head(source: Source, index: int, part: str) -> Tensor:
    """Return query, key and value rows of head 0, then of head 1, and so on."""
    heads = source.spec.n_heads
    parts = [
        each.reshape(heads, -1, *each.shape[1:]) for each in source.query_key_value(index, part)
    ]
    return torch.cat(parts, dim=1).flatten(0, 1)


def _projection(source: Source, index: int, part: str, place: int) -> Tensor:
    return source.query_key_value(index, part)[place]


def _transposed(make: Callable[[], Tensor]) -> Tensor:
    return make().T
