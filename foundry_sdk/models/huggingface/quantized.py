"""Frozen weights of 4 bits under adapters (QLoRA, Dettmers et al. 2023), by ``bitsandbytes``.

A layer is made without values. Its weight is quantized when it is read from the files, one tensor
at a time, and stands nowhere else: not in the optimizer, not in a checkpoint.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import attrs
import torch
from torch import Tensor, nn

from foundry_sdk.errors import SpecError

_OPTIONS: Final = "model.quantization_config"


@attrs.frozen(kw_only=True)
class Quantization:
    """How the weight of one layer is quantized.

    Attributes:
        transposed: the weight in files is (inputs, outputs).
        quant_type: ``nf4`` or ``fp4``.
        double: the scales of its blocks are quantized too.
    """

    transposed: bool
    quant_type: str
    double: bool


def quantize_layers(module: Any, config: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Replace linear layers of a transformers model, in place; their weights are on meta.

    The head and what ``llm_int8_skip_modules`` names stay as they are.

    Raises:
        SpecError: bitsandbytes is not installed, or no layer is left to quantize.
    """
    from transformers.pytorch_utils import Conv1D

    library = _library()
    skipped = config.get("llm_int8_skip_modules") or []
    head = module.get_output_embeddings()
    layers = [
        (path, layer)
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        and layer is not head
        and not any(part == path or part in path.split(".") for part in skipped)
    ]
    if not layers:
        raise SpecError(f"{_OPTIONS}: {type(module).__name__} has no linear layer to quantize")
    dtype = getattr(torch, config.get("bnb_4bit_compute_dtype", "float32"))
    for path, layer in layers:
        transposed = isinstance(layer, Conv1D)  # GPT-2's: (inputs, outputs)
        rows, columns = layer.weight.shape
        inputs, outputs = (rows, columns) if transposed else (columns, rows)
        made = library.nn.Linear4bit(
            inputs,
            outputs,
            bias=layer.bias is not None,
            compute_dtype=dtype,
            device="meta",
        )
        made.quantization = Quantization(
            transposed=transposed,
            quant_type=config.get("bnb_4bit_quant_type", "fp4"),
            double=config.get("bnb_4bit_use_double_quant", False),
        )
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, made.requires_grad_(False))


def quantized_layers(module: nn.Module) -> dict[str, Any]:
    """Return the layers of 4 bits by path."""
    return {
        path: layer
        for path, layer in module.named_modules()
        if isinstance(getattr(layer, "quantization", None), Quantization)
    }


def empty_weights(module: nn.Module) -> None:
    """Give quantized layers weights without elements, so that moving the model moves nothing."""
    for layer in quantized_layers(module).values():
        layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)


def weight_sinks(module: nn.Module) -> dict[str, tuple[Tensor, Callable[[Tensor], None]]]:
    """Return, by name, the shape of each such weight in files (a meta tensor), and what takes it.

    What takes it quantizes it on the device where the layer's weight is.
    """
    found: dict[str, tuple[Tensor, Callable[[Tensor], None]]] = {}
    for path, layer in quantized_layers(module).items():
        shape = (layer.out_features, layer.in_features)
        if layer.quantization.transposed:
            shape = shape[::-1]
        found[f"{path}.weight"] = (torch.empty(shape, device="meta"), partial(_quantize, layer))
    return found


def _quantize(layer: Any, values: Tensor) -> None:  # noqa: ANN401 - a Linear4bit
    if layer.quantization.transposed:
        values = values.T
    made = _library().nn.Params4bit(
        values.float().contiguous(),
        requires_grad=False,
        compress_statistics=layer.quantization.double,
        quant_type=layer.quantization.quant_type,
        module=layer,
    )
    layer.weight = made.to(layer.weight.device)


def _library() -> Any:  # noqa: ANN401
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise SpecError(
            f"{_OPTIONS} needs the package bitsandbytes: pip install 'foundry-sdk[qlora]'"
        ) from error
