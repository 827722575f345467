"""LoRA adapters (Hu et al. 2021) around the layers of a transformers model, by ``peft``."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from foundry_sdk.errors import ExportError, SpecError

ADAPTER: Final = "default"
"""Name under which peft keeps the one adapter."""


def lora_config(values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a LoraConfig
    """Return peft's config.

    Raises:
        SpecError: peft is not installed, or a value is none of its.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise SpecError("model.peft_config needs the package peft: pip install peft") from error
    options = {key: value for key, value in values.items() if key not in {"peft_type", "task_type"}}
    try:
        return LoraConfig(task_type="CAUSAL_LM", **options)
    except (TypeError, ValueError) as error:
        raise SpecError(f"model.peft_config: {error}") from error


def add_adapters(module: Any, values: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Put adapters on the layers that ``peft_config`` targets, in place; the rest is frozen.

    Raises:
        SpecError: it targets no layer, or peft does not know which to take.
    """
    config = lora_config(values)
    from peft import inject_adapter_in_model

    names = sorted(
        {
            name.rpartition(".")[2]
            for name, layer in module.named_modules()
            if getattr(getattr(layer, "weight", None), "ndim", 0) == 2
        }
    )
    module.requires_grad_(False)
    try:
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    except (ValueError, TypeError) as error:
        raise SpecError(
            f"model.peft_config.target_modules: {error} The model has {', '.join(names)}"
        ) from error


def is_adapted(module: nn.Module) -> bool:
    """Return whether an adapter is on this layer itself."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def adapters_of(module: Any) -> list[str]:  # noqa: ANN401
    """Return the names of the layers that adapters are on."""
    marker = ("lora_A", "lora_embedding_A")
    return [
        name
        for name, layer in module.named_modules()
        if any(len(getattr(layer, each, ())) for each in marker)
    ]


@torch.no_grad()
def merge_adapters(module: Any) -> None:  # noqa: ANN401
    """Add each adapter's product to its layer's weight, in place.

    Raises:
        ExportError: a weight would not be finite.
    """
    for name in adapters_of(module):
        try:
            module.get_submodule(name).merge(safe_merge=True)
        except ValueError as error:
            raise ExportError(f"{name}: {error}") from error
