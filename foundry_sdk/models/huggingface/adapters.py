"""LoRA adapters (Hu et al. 2021) around the layers of a transformers model, by ``peft``."""

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from foundry_sdk.errors import SpecError

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
        {name.rpartition(".")[2] for name, m in module.named_modules() if not any(m.children())}
    )
    module.requires_grad_(False)
    try:
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    except (ValueError, TypeError) as error:
        raise SpecError(
            f"model.peft_config.target_modules: {error}; the model's layers end in "
            f"{', '.join(names)}"
        ) from error


def is_adapted(module: nn.Module) -> bool:
    """Return whether an adapter is on this layer itself."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)
