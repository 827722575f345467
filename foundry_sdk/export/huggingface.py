"""Exports trained models of the transformers library: whole, merged, or adapters alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from foundry_sdk.errors import ExportError
from foundry_sdk.export.certificate import TOLERANCE, Certificate, compare, learned_template
from foundry_sdk.export.files import digests, write_json
from foundry_sdk.export.opened import named_ends
from foundry_sdk.models.huggingface.adapters import (
    ADAPTER_FILE,
    adapters_of,
    file_name,
    lora_config,
    merge_adapters,
)
from foundry_sdk.models.huggingface.model import HFModel, is_adapter, plain_name
from foundry_sdk.models.huggingface.source import find_source
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_transformers(
    folder: Path,
    model: HFModel,
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    precision: str,
    dtype: torch.dtype,
    merge: bool,
    shard_bytes: int,
) -> Certificate:
    """Write a trained model into ``folder`` and prove that transformers reads the same from there.

    Args:
        folder: an existing, empty one.
        model: on the CPU, in evaluation mode; its values are rounded to ``dtype``, and its
            adapters merged where ``merge`` says so.
        tokenizer: saved beside the weights.
        precision: name of ``dtype``, for the certificate.
        dtype: of the files.
        merge: write the weights with the adapters in them; else adapters are written alone.
        shard_bytes: largest safetensors file.

    Raises:
        ExportError: the files differ from the model, or there is nothing to merge.
    """
    adapted = adapters_of(model.model)
    if merge and not adapted:
        raise ExportError("--merge: the model has no adapters to merge")
    if merge:
        merge_adapters(model.model)
    alone = bool(adapted) and not merge
    _round(model, dtype, only=is_adapter if alone else None)
    base: Path | None = None
    if alone:
        base = _write_adapters(folder, model, dtype)
    else:
        _write_whole(folder, model, dtype, shard_bytes)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    tensors = _tensors(folder)
    written = sum(torch.Size(shape).numel() for shape in tensors.values())
    expected = sum(
        p.numel() for name, p in model.model.named_parameters() if is_adapter(name) is alone
    )
    if written < expected:
        raise ExportError(f"{expected} parameters should be in the files, {written} are")
    comparison = compare(
        model, folder, tensors=tensors, tokenizer=tokenizer, tolerance=TOLERANCE, base=base
    )
    return Certificate(
        architecture=type(model.model).__name__ + (" with LoRA adapters" if alone else ""),
        precision=precision,
        parameters=written,
        tensors=len(tensors),
        prompts=comparison.prompts,
        max_abs_difference=comparison.max_abs_difference,
        logit_scale=comparison.logit_scale,
        tolerance=TOLERANCE,
        greedy_tokens=comparison.greedy_tokens,
        ties=comparison.ties,
        versions=comparison.versions,
        sha256=digests(folder),
        chat_template=learned_template(tokenizer),
    )


@torch.no_grad()
def _round(model: HFModel, dtype: torch.dtype, *, only: Callable[[str], bool] | None) -> None:
    for name, parameter in model.named_parameters():
        if only is not None and not only(name):
            continue
        parameter.copy_(parameter.to(dtype))
        if not parameter.isfinite().all():
            raise ExportError(
                f"{name} holds NaN or infinity"
                + (", or is too large for fp16; export as bf16" * (dtype == torch.float16))
            )


def _write_whole(folder: Path, model: HFModel, dtype: torch.dtype, shard_bytes: int) -> None:
    """Write weights and config as transformers does, under the names that its files have."""
    values: dict[str, Tensor] = {
        plain_name(name): value.to(dtype) if value.is_floating_point() else value
        for name, value in model.model.state_dict().items()
        if not is_adapter(name)
    }
    model.model.save_pretrained(str(folder), state_dict=values, max_shard_size=shard_bytes)
    file = folder / "config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = str(dtype).removeprefix("torch.")
    write_json(file, {**config, "use_cache": True})
    ends = named_ends(find_source(model.spec).folder)
    if ends is not None:  # of a chat model more tokens than config.json names
        file = folder / "generation_config.json"
        generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        write_json(file, {**generation, "eos_token_id": ends})


def _write_adapters(folder: Path, model: HFModel, dtype: torch.dtype) -> Path:
    """Write the adapters as ``peft`` does; return the folder of the model that they belong to."""
    from safetensors.torch import save_file

    spec = model.spec
    described = spec.adapter_config() if isinstance(spec, HFCausalLMSpec) else None
    if described is None or not spec.pretrained:
        raise ExportError(
            "the adapters belong to a model with new weights, which is nowhere but in this run; "
            "export them merged, with --merge"
        )
    source = find_source(attrs.evolve(spec, config_overrides={}))
    if int(source.config().get_text_config().vocab_size) != model.vocab_size:
        raise ExportError(
            f"the embeddings were resized to {model.vocab_size} tokens, which adapters alone do "
            "not say; export them merged, with --merge"
        )
    config = lora_config(described)
    # what was put on layers, where the spec leaves it to peft
    config.target_modules = sorted(adapters_of(model.model))
    config.base_model_name_or_path = spec.pretrained_model_name_or_path
    config.revision = spec.revision
    config.inference_mode = True
    config.save_pretrained(str(folder))
    values = {
        file_name(name): value.detach().to(dtype).contiguous()
        for name, value in model.model.named_parameters()
        if is_adapter(name)
    }
    save_file(values, folder / ADAPTER_FILE, metadata={"format": "pt"})
    return source.folder


def _tensors(folder: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                found[name] = list(file.get_slice(name).get_shape())
    return found
