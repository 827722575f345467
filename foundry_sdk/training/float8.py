"""Linear layers whose products are computed in float8 (``precision: amp_fp8``)."""

import importlib.util
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from foundry_sdk.errors import SpecError
from foundry_sdk.models.language_model import LanguageModel
from foundry_sdk.specs.run import Float8Spec

if TYPE_CHECKING:
    from torchao.float8 import Float8LinearConfig

_CAPABILITY: Final = (8, 9)
"""The first GPUs with float8 matrix units (Ada); Hopper is 9.0."""
_MULTIPLE: Final = 16
"""float8 kernels need dimensions that are multiples of this."""


def convert_blocks(
    model: LanguageModel, spec: Float8Spec, device: torch.device, *, emulate: bool = False
) -> str:
    """Have the large linear layers of ``model``'s blocks multiply in float8; say which.

    Weights stay what they are: activations, weights and gradients are quantised for each product
    (Micikevicius et al. 2022, "FP8 Formats for Deep Learning": e4m3 forward, e5m2 for gradients),
    with scales from the present values. The head, embeddings, norms and attention stay bfloat16.

    Args:
        model: changed in place; parameters and their names stay.
        spec: which layers, and how they are scaled.
        device: where the model computes.
        emulate: compute the same numbers with ordinary products, on any device.

    Raises:
        SpecError: torchao is not installed, the device has no float8 units, or no layer is large
            enough to gain from it.
    """
    if importlib.util.find_spec("torchao") is None:
        raise SpecError("precision: amp_fp8 needs torchao: pip install 'foundry-sdk[fp8]'")
    if not emulate:
        _check_device(device)
    from torchao.float8 import convert_to_float8_training

    config = _config(spec, emulate=emulate)
    linears = {name: module for block in model.blocks() for name, module in _named_linears(block)}
    chosen = {id(module) for module in linears.values() if _is_large(module, spec.minimum_size)}
    if not chosen:
        raise SpecError(
            f"precision: amp_fp8 gains nothing here: none of the blocks' {len(linears)} linear "
            f"layers has both dimensions >= {spec.minimum_size} (fp8_config.minimum_size) and "
            f"divisible by {_MULTIPLE}; use amp_bf16"
        )
    for block in model.blocks():
        convert_to_float8_training(
            block, config=config, module_filter_fn=lambda module, _: id(module) in chosen
        )
    return f"{spec.recipe}, {len(chosen)} of the blocks' {len(linears)} linear layers"


def _named_linears(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    prefix = str(id(block))
    return [
        (f"{prefix}.{name}", module)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]


def _is_large(layer: nn.Linear, minimum: int) -> bool:
    sizes = (layer.in_features, layer.out_features)
    return min(sizes) >= minimum and all(size % _MULTIPLE == 0 for size in sizes)


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise SpecError(f"precision: amp_fp8 needs a GPU, this is a {device.type}; use amp_bf16")
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise SpecError(
            f"precision: amp_fp8 needs a GPU with float8 units (compute capability 8.9 or more); "
            f"{name} has none; use amp_bf16"
        )


def _config(spec: Float8Spec, *, emulate: bool) -> "Float8LinearConfig":
    import dataclasses

    from torchao.float8 import Float8LinearConfig

    config = Float8LinearConfig.from_recipe_name(spec.recipe)
    return dataclasses.replace(config, emulate=emulate)
