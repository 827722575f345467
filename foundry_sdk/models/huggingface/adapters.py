"""LoRA adapters (Hu et al. 2021) around the layers of a transformers model, by ``peft``."""

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from foundry_sdk import hub
from foundry_sdk.errors import ExportError, SpecError
from foundry_sdk.models.huggingface.quantized import quantized_layers
from foundry_sdk.models.huggingface.spec import check_peft_config
from foundry_sdk.models.huggingface.weights import WeightFiles, local, own_part, refuse_differences

ADAPTER: Final = "default"
"""Name under which peft keeps the one adapter."""
ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_FILE: Final = "adapter_model.safetensors"
_NAMED: Final = re.compile(rf"(\.lora_(?:embedding_)?[AB])\.{ADAPTER}(?=\.|$)")
_FOLDER: Final = "model.pretrained_lora_id_or_path"
_OF_ITS_TRAINING: Final = ("base_model_name_or_path", "inference_mode", "revision", "auto_mapping")


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
        # peft asks this before it looks at a layer's class
        module.is_loaded_in_4bit = bool(quantized_layers(module))
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    except (ValueError, TypeError) as error:
        raise SpecError(
            f"model.peft_config.target_modules: {error} The model has {', '.join(names)}"
        ) from error
    finally:
        del module.is_loaded_in_4bit


def file_name(name: str) -> str:
    """Return the name that a parameter of an adapter has in ``adapter_model.safetensors``."""
    return "base_model.model." + _NAMED.sub(r"\1", name)


def adapter_folder(name: str) -> Path:
    """Return where the adapters of this folder, or name on the hub, are.

    Raises:
        SpecError: there are none, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            folder = Path(
                snapshot_download(
                    name,
                    allow_patterns=[ADAPTER_CONFIG, ADAPTER_FILE],
                    local_files_only=not hub.can_be_reached(),
                )
            )
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise SpecError(
                f"{_FOLDER}: {name!r} is no local folder and could not be read from the hub"
            ) from error
    absent = [each for each in (ADAPTER_CONFIG, ADAPTER_FILE) if not (folder / each).is_file()]
    if absent:
        raise SpecError(
            f"{_FOLDER}: {folder} has no {' and no '.join(absent)}; it is the folder that "
            "`foundry export` or peft's save_pretrained wrote"
        )
    return folder


def read_adapter_config(name: str) -> Mapping[str, Any]:
    """Return the ``peft_config`` that adapters were saved with.

    Raises:
        SpecError: there are none, or of a kind that is not supported here.
    """
    lora_config({})  # says whether peft is there
    from peft import LoraConfig

    file = adapter_folder(name) / ADAPTER_CONFIG
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    try:
        check_peft_config(values)
    except ValueError as error:
        raise SpecError(f"{_FOLDER}: {file}: {error}") from error
    known = {*inspect.signature(LoraConfig).parameters, "peft_type"} - {*_OF_ITS_TRAINING}
    # newer versions of peft write options that an older one does not have
    return {key: value for key, value in values.items() if key in known}


@torch.no_grad()
def load_adapters(name: str, parameters: Mapping[str, Tensor]) -> None:
    """Fill adapters from their file; of a sharded one this rank's part.

    Args:
        name: as ``adapter_folder`` takes it.
        parameters: of the adapters, by name in the transformers model.

    Raises:
        SpecError: the file has other tensors, by name or shape.
    """
    files = WeightFiles(adapter_folder(name), single=ADAPTER_FILE)
    targets = {file_name(own): parameter for own, parameter in parameters.items()}
    shapes = files.shapes()
    refuse_differences(
        files.folder,
        missing=sorted(set(targets) - set(shapes)),
        extra=sorted(set(shapes) - set(targets)),
        wrong=[
            f"{each}: {list(shape)} in the files, {list(targets[each].shape)} in the model"
            for each, shape in shapes.items()
            if each in targets and shape != tuple(targets[each].shape)
        ],
    )
    parts = {each: own_part(target) for each, target in targets.items()}
    for each, values in files.read({n: p for n, p in parts.items() if p != ()}):
        local(targets[each]).copy_(values)


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
