"""Activation checkpointing: what of a block is kept for the backward pass, and what made again."""

import functools
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from foundry_sdk.errors import SpecError
from foundry_sdk.models.language_model import LanguageModel
from foundry_sdk.specs.run import FSDPSpec

_KEPT: Final = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten._scaled_mm.default,
    }
)
"""The products of linear layers, which take most of a block's time. The scores of an attention that
is written out are products too (``bmm``), but far too large to keep."""


def checkpoint_activations(model: LanguageModel, spec: FSDPSpec | None) -> None:
    """Have activations of the model's blocks made again in the backward pass, where asked for.

    ``full`` keeps a block's input alone (Chen et al. 2016, "Training Deep Nets with Sublinear
    Memory Cost", section 3). ``selective`` keeps the outputs of its linear layers as well, and
    makes norms, activation functions, attention and sums again (Korthikanti et al. 2022,
    "Reducing Activation Recomputation in Large Transformer Models", section 5).

    The forward is replaced instead of the module, so that parameter names stay as they are.

    Raises:
        SpecError: the model has no blocks to recompute.
    """
    if spec is None or not spec.activation_checkpointing:
        return
    blocks = model.recomputed_blocks()
    if not blocks:
        raise SpecError(
            "fsdp_config.activation_checkpointing: this model has no blocks to recompute"
        )
    options: dict[str, Any] = {"use_reentrant": False}
    if spec.activation_checkpointing_policy == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, **options)


def _policy(
    _: object,
    operation: Callable[..., Any],
    *args: Any,  # noqa: ANN401 - the operation's own
    **kwargs: Any,  # noqa: ANN401
) -> CheckpointPolicy:
    del args, kwargs
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
