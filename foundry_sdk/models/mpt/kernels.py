"""Attention kernels behind one function, and which of them can compute what is asked for."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own short name
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from foundry_sdk.errors import SpecError
from foundry_sdk.models.mpt.options import AttentionSpec

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Kernel = Literal["explicit", "fused", "varlen", "flex"]

_FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


try:  # new in PyTorch 2.10, and its arguments are still changing
    from torch.nn.attention.varlen import varlen_attn

    _VARLEN_ARGUMENTS = frozenset(inspect.signature(varlen_attn).parameters)
except ImportError:
    _VARLEN_ARGUMENTS = frozenset()

_FLEX_HEAD_DIM: Final = 16
HAS_VARLEN: Final = {"window_size", "scale"} <= _VARLEN_ARGUMENTS
"""Whether this PyTorch can attend within documents that are laid end to end."""
_VARLEN_OPTIONS: Final[dict[str, Any]] = (
    {"enable_gqa": True} if "enable_gqa" in _VARLEN_ARGUMENTS else {}
)


@attrs.frozen(kw_only=True, eq=False)
class AttentionInputs:
    """What every block's attention needs besides hidden states, made once per forward.

    A class of its own rather than a tuple, so that FSDP does not round its tensors to 16 bits on
    the way into a block.

    Attributes:
        kernel: which one computes.
        rotary: cosine and sine, each (1 or B, S, 1, head_dim / 2).
        query_factor: (1 or B, S, 1, 1), of attention temperature tuning.
        mask: bool (1 or B, 1, S, S), True = the query may see the key; ``explicit``, ``fused``.
        bias: (1 or B, heads, S, S), added to scaled scores; ``explicit``.
        slopes: (heads,), ALiBi; ``flex``.
        block_mask: ``flex``.
        boundaries: int32 (documents + 1,), where each document starts; ``varlen``.
        longest: tokens of the longest document; ``varlen``.
    """

    kernel: Kernel
    rotary: tuple[Tensor, Tensor] | None = None
    query_factor: Tensor | None = None
    mask: Tensor | None = None
    bias: Tensor | None = None
    slopes: Tensor | None = None
    block_mask: "BlockMask | None" = None
    boundaries: Tensor | None = None
    longest: int = 0


class AttentionOptions(NamedTuple):
    """The numbers that a kernel needs. A tuple, because the compiler can make one.

    Attributes:
        scale: factor on query-key products.
        softcap: c of c * tanh(scores / c), on scaled scores.
        dropout: on attention weights.
    """

    scale: float
    softcap: float | None = None
    dropout: float = 0.0


def unsupported(attention: AttentionSpec, device_type: str) -> Mapping[str, str]:
    """Return, for each ``attn_impl`` that cannot compute this, the reason."""
    reasons = {}
    extras = {
        "alibi": attention.alibi,
        "sliding_window_size": attention.sliding_window_size != -1,
        "attn_logit_softcapping": attention.attn_logit_softcapping is not None,
    }
    named = " and ".join(name for name, used in extras.items() if used)
    if named:
        reasons["flash"] = f"PyTorch's fused kernels have no {named}"
    if attention.attn_pdrop:
        reasons["flex"] = "it has no dropout on attention weights (attn_pdrop)"
    elif device_type == "cpu":
        reasons["flex"] = "it has no backward pass on a CPU"
    return reasons


def check_implementation(attention: AttentionSpec, device_type: str, head_dim: int) -> None:
    """Refuse an ``attn_impl`` that cannot train this model on this device.

    Raises:
        SpecError: naming the ones that could.
    """
    reasons = dict(unsupported(attention, device_type))
    if device_type == "cuda" and head_dim < _FLEX_HEAD_DIM:
        reasons["flex"] = f"it needs heads of at least {_FLEX_HEAD_DIM}, not {head_dim} dimensions"
    if attention.attn_impl in reasons:
        able = [name for name in ("flash", "flex", "torch") if name not in reasons]
        raise SpecError(
            f"model.attn_config.attn_impl: {attention.attn_impl} cannot be used on "
            f"{device_type}: {reasons[attention.attn_impl]}; use {' or '.join(able)}"
        )


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, inputs: AttentionInputs, options: AttentionOptions
) -> Tensor:
    """Return what each query reads.

    Args:
        query: (B, S, heads, head_dim).
        key: (B, S, kv heads, head_dim).
        value: as ``key``.
        inputs: of this forward.
        options: of this layer; dropout 0 outside training.

    Returns:
        (B, S, heads, head_dim).
    """
    if inputs.kernel == "varlen":
        return _varlen(query, key, value, inputs, options)
    heads_first = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    if inputs.kernel == "fused":
        mixed = _fused(*heads_first, inputs, options)
    elif inputs.kernel == "flex":
        mixed = _flex(*heads_first, inputs, options)
    else:
        mixed = explicit_attention(
            *heads_first, mask=inputs.mask, bias=inputs.bias, options=options
        )
    return mixed.transpose(1, 2)


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    bias: Tensor | None,
    options: AttentionOptions,
) -> Tensor:
    """Return softmax(softcap(scale q·k) + bias) v with every matrix written out.

    Scores and softmax are float32 (or float64).

    Args:
        query: (B, heads, T, head_dim).
        key: (B, kv heads, S, head_dim).
        value: as ``key``.
        mask: bool, broadcastable to (B, heads, T, S), True = may be seen.
        bias: broadcastable likewise.
        options: scale, softcap, dropout.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-2, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.softmax(dim=-1).to(value.dtype), options.dropout)
    return weights @ value


def _fused(
    query: Tensor, key: Tensor, value: Tensor, inputs: AttentionInputs, options: AttentionOptions
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]

    def run() -> Tensor:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=inputs.mask,
            dropout_p=options.dropout,
            is_causal=inputs.mask is None,
            scale=options.scale,
            enable_gqa=grouped,
        )

    if query.device.type != "cuda":
        return run()
    with sdpa_kernel(_FASTEST_FIRST, set_priority=True):
        return run()


def _flex(
    query: Tensor, key: Tensor, value: Tensor, inputs: AttentionInputs, options: AttentionOptions
) -> Tensor:
    compile_here = query.device.type == "cuda" and not torch.compiler.is_compiling()
    run: Callable[..., Tensor] = torch.compile(_flex_call) if compile_here else _flex_call
    return run(query, key, value, inputs.slopes, inputs.block_mask, options.scale, options.softcap)


def _flex_call(  # noqa: PLR0917 - compiled as it stands
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor | None,
    block_mask: "BlockMask",
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Call flex attention with a score function made where the compiler sees it."""

    def change_score(
        score: Tensor, batch: Tensor, head: Tensor, query_index: Tensor, key_index: Tensor
    ) -> Tensor:
        del batch
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if slopes is not None:
            score = score + slopes[head] * (key_index - query_index)
        return score

    mixed = flex_attention(
        query,
        key,
        value,
        score_mod=None if softcap is None and slopes is None else change_score,
        block_mask=block_mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed if isinstance(mixed, Tensor) else mixed[0]


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, inputs: AttentionInputs, options: AttentionOptions
) -> Tensor:
    """Attend within documents laid end to end, rows of the batch included."""
    if inputs.boundaries is None:
        raise ValueError("varlen attention needs document boundaries")
    mixed = varlen_attn(
        query.flatten(0, 1),
        key.flatten(0, 1),
        value.flatten(0, 1),
        inputs.boundaries,
        inputs.boundaries,
        inputs.longest,
        inputs.longest,
        scale=options.scale,
        window_size=(-1, 0),
        **_VARLEN_OPTIONS,
    )
    if not isinstance(mixed, Tensor):
        raise TypeError("varlen attention returned more than its output")
    return mixed.view(query.shape)
