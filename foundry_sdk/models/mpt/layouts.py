"""An MPT's tensors under the names, and in the shapes, of four transformers architectures.

There is one description of each architecture. An export makes its tensors of it, and
``mpt_causal_lm`` reads it the other way when it begins from an export.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import attrs
import torch
from torch import Tensor

from foundry_sdk.models.mpt.spec import MPTSpec

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
_WPE: Final = "transformer.wpe.weight"
_NORM: Final = "transformer.norm_f"
_HEAD: Final = "lm_head.weight"


@attrs.frozen(kw_only=True)
class Rows:
    """Rows of one of our parameters.

    Attributes:
        parameter: its name; None = zeros, for a bias that the MPT does not have.
        start: the first.
        stop: behind the last.
        factor: what they are multiplied by on the way out.
    """

    parameter: str | None
    start: int
    stop: int
    factor: float = 1.0

    def __len__(self) -> int:
        """Return how many there are."""
        return self.stop - self.start


@attrs.frozen(kw_only=True)
class Counterpart:
    """A tensor of another architecture, which is made of rows of ours.

    Attributes:
        name: there.
        shape: there.
        blocks: our rows, in the order in which they follow each other.
        transposed: what are rows here are columns there.
    """

    name: str
    shape: tuple[int, ...]
    blocks: tuple[Rows, ...]
    transposed: bool = False

    def make(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the tensor; of one block without a copy where it can be."""
        made = [_rows(block, parameters) for block in self.blocks]
        joined = made[0] if len(made) == 1 else torch.cat(made)
        return joined.T if self.transposed else joined


Layout = Callable[[MPTSpec], tuple[Counterpart, ...]]
"""Returns every tensor of an architecture."""


def mpt_layout(spec: MPTSpec) -> tuple[Counterpart, ...]:
    """Return the tensors of ``MptForCausalLM``: the names are the same, the biases are gone."""
    # softmax_scale is in its config: queries stay as they are, and so does clip_qkv's meaning
    ours = _Parameters(spec, query_factor=1.0)
    found = [ours.same(_WTE, _WTE)]
    for index in range(spec.n_layers):
        block = f"transformer.blocks.{index}"
        found.append(
            ours.joined(f"{block}.attn.Wqkv.weight", ours.query_key_value(index, "weight"))
        )
        for layer in ("norm_1", "attn.out_proj", "norm_2", "ffn.up_proj", "ffn.down_proj"):
            name = f"{block}.{layer}.weight"
            found.append(ours.same(name, name))
    name = f"{_NORM}.weight"
    return (*found, ours.same(name, name, factor=spec.logit_factor), *ours.head(_HEAD))


def gpt2_layout(spec: MPTSpec) -> tuple[Counterpart, ...]:
    """Return the tensors of ``GPT2LMHeadModel``, whose linear weights are (inputs, outputs)."""
    ours = _Parameters(spec)
    found = [ours.same(_WTE, _WTE), ours.same(_WPE, _WPE)]
    for index in range(spec.n_layers):
        block, theirs = f"transformer.blocks.{index}", f"transformer.h.{index}"
        found += ours.layer(f"{theirs}.ln_1", f"{block}.norm_1")
        found += ours.layer(f"{theirs}.ln_2", f"{block}.norm_2")
        for part in ("weight", "bias"):
            name = f"{theirs}.attn.c_attn.{part}"
            projections = ours.query_key_value(index, part)
            found.append(ours.joined(name, projections, transposed=part == "weight"))
        for mine, other in _GPT2_LAYERS.items():
            found += ours.layer(f"{theirs}.{other}", f"{block}.{mine}", transposed=True)
    found += ours.layer("transformer.ln_f", _NORM, factor=spec.logit_factor)
    return (*found, *ours.head(_HEAD))


def gpt_neox_layout(spec: MPTSpec) -> tuple[Counterpart, ...]:
    """Return the tensors of ``GPTNeoXForCausalLM``, whose QKV rows go head by head."""
    ours = _Parameters(spec)
    found = [ours.same("gpt_neox.embed_in.weight", _WTE)]
    for index in range(spec.n_layers):
        block, theirs = f"transformer.blocks.{index}", f"gpt_neox.layers.{index}"
        for mine, other in _NEOX_LAYERS.items():
            found += ours.layer(f"{theirs}.{other}", f"{block}.{mine}")
        for part in ("weight", "bias"):
            projections = [_split(each, spec.n_heads) for each in ours.query_key_value(index, part)]
            by_head = [each for head in zip(*projections, strict=True) for each in head]
            found.append(ours.joined(f"{theirs}.attention.query_key_value.{part}", by_head))
    found += ours.layer("gpt_neox.final_layer_norm", _NORM, factor=spec.logit_factor)
    return (*found, *ours.head("embed_out.weight"))


def llama_layout(spec: MPTSpec) -> tuple[Counterpart, ...]:
    """Return the tensors of ``LlamaForCausalLM``: separate projections, a bias on all or none."""
    ours = _Parameters(spec)
    attention_bias, mlp_bias = spec.qkv_bias or not spec.no_bias, not spec.no_bias
    linear = [("attn.out_proj", "self_attn.o_proj", attention_bias)]
    linear += [
        (f"ffn.{name}_proj", f"mlp.{name}_proj", mlp_bias) for name in ("gate", "up", "down")
    ]
    linear += [("norm_1", "input_layernorm", False), ("norm_2", "post_attention_layernorm", False)]
    found = [ours.same("model.embed_tokens.weight", _WTE)]
    for index in range(spec.n_layers):
        block, theirs = f"transformer.blocks.{index}", f"model.layers.{index}"
        for part in ("weight", "bias") if attention_bias else ("weight",):
            projections = ours.query_key_value(index, part)
            for letter, rows in zip("qkv", projections, strict=True):
                found.append(ours.joined(f"{theirs}.self_attn.{letter}_proj.{part}", [rows]))
        for mine, other, biased in linear:
            found += ours.layer(f"{theirs}.{other}", f"{block}.{mine}", biased=biased)
    found += ours.layer("model.norm", _NORM, factor=spec.logit_factor, biased=False)
    return (*found, *ours.head("lm_head.weight"))


def own_layout(spec: MPTSpec) -> tuple[Counterpart, ...]:
    """Return every tensor under its own name."""
    ours = _Parameters(spec)
    return tuple(ours.same(name, name) for name in ours.shapes)


LAYOUTS: Final[Mapping[str, Layout]] = MappingProxyType(
    {
        "MptForCausalLM": mpt_layout,
        "GPT2LMHeadModel": gpt2_layout,
        "GPTNeoXForCausalLM": gpt_neox_layout,
        "LlamaForCausalLM": llama_layout,
    }
)
"""Layout of each class of transformers that an MPT can be."""


class _Parameters:
    """An MPT's parameters as rows.

    Attributes:
        shapes: of each parameter.

    Args:
        spec: of the model.
        query_factor: of queries; None = what ``softmax_scale`` differs from 1/sqrt(head_dim).
    """

    def __init__(self, spec: MPTSpec, *, query_factor: float | None = None) -> None:
        meta = spec.build(device="meta")
        self.shapes = {name: tuple(value.shape) for name, value in meta.named_parameters()}
        self._spec = spec
        if query_factor is None:
            scale = spec.attn_config.softmax_scale
            query_factor = 1.0 if scale is None else scale * math.sqrt(spec.dim_per_head)
        self._query_factor = query_factor

    def same(
        self, theirs: str, name: str, *, factor: float = 1.0, transposed: bool = False
    ) -> Counterpart:
        """Return the counterpart of a whole parameter."""
        return self.joined(theirs, [self._whole(name, factor)], transposed=transposed)

    def layer(
        self,
        theirs: str,
        layer: str,
        *,
        factor: float = 1.0,
        transposed: bool = False,
        biased: bool = True,
    ) -> Iterator[Counterpart]:
        """Yield the counterparts of a layer's weight, and of its bias where they have one."""
        yield self.same(f"{theirs}.weight", f"{layer}.weight", factor=factor, transposed=transposed)
        if biased:
            yield self.joined(f"{theirs}.bias", [self._bias(layer, factor)])

    def head(self, theirs: str) -> Iterator[Counterpart]:
        """Yield the counterpart of the head where it is not the embeddings."""
        if not self._spec.tie_word_embeddings:
            yield self.same(theirs, _HEAD)

    def query_key_value(self, index: int, part: str) -> list[Rows]:
        """Return ``weight`` or ``bias`` of the three projections of a block."""
        spec, attention = self._spec, f"transformer.blocks.{index}.attn"
        read = self._bias if part == "bias" else lambda layer: self._whole(f"{layer}.weight")
        if spec.attn_config.fused_qkv:
            whole = read(f"{attention}.Wqkv")
            heads, keys = (count * spec.dim_per_head for count in (spec.n_heads, spec.kv_heads))
            ends = (0, heads, heads + keys, heads + 2 * keys)
            parts = [attrs.evolve(whole, start=ends[n], stop=ends[n + 1]) for n in range(3)]
        else:
            parts = [read(f"{attention}.{name}") for name in ("Wq", "Wk", "Wv")]
        return [attrs.evolve(parts[0], factor=self._query_factor), *parts[1:]]

    def joined(self, theirs: str, blocks: list[Rows], *, transposed: bool = False) -> Counterpart:
        """Return a counterpart of rows that follow each other."""
        first = blocks[0].parameter
        others = () if first is None else self.shapes[first][1:]
        shape = (sum(map(len, blocks)), *others)
        return Counterpart(
            name=theirs,
            shape=shape[::-1] if transposed else shape,
            blocks=tuple(blocks),
            transposed=transposed,
        )

    def _whole(self, name: str, factor: float = 1.0) -> Rows:
        return Rows(parameter=name, start=0, stop=self.shapes[name][0], factor=factor)

    def _bias(self, layer: str, factor: float = 1.0) -> Rows:
        """Return a layer's bias; zeros, one per row of its weight, where it has none."""
        name = f"{layer}.bias"
        if name in self.shapes:
            return self._whole(name, factor)
        return Rows(parameter=None, start=0, stop=self.shapes[f"{layer}.weight"][0])


def _split(rows: Rows, count: int) -> list[Rows]:
    """Return ``count`` equal parts of ``rows``, in order."""
    size = len(rows) // count
    starts = range(rows.start, rows.stop, size)
    return [attrs.evolve(rows, start=start, stop=start + size) for start in starts]


def _rows(block: Rows, parameters: Mapping[str, Tensor]) -> Tensor:
    if block.parameter is None:
        return torch.zeros(len(block))
    rows = parameters[block.parameter][block.start : block.stop]
    return rows if block.factor == 1.0 else rows * block.factor
