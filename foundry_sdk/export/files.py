"""Writes the files of an exported model: safetensors in shards, config, tokenizer."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from foundry_sdk.export.architectures import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD_BYTES: Final = 5_000_000_000
"""Largest safetensors file, as on the hub."""
_INDEX: Final = "model.safetensors.index.json"


def write_weights(
    folder: Path,
    architecture: Architecture,
    parameters: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, list[int]]:
    """Write every tensor of ``architecture`` and return its name and shape.

    One shard is in memory at a time, besides the parameters.

    Args:
        folder: an existing one.
        architecture: names the tensors.
        parameters: of the MPT, by name.
        dtype: of the files.
        shard_bytes: a file that would be larger is split.
    """
    from safetensors.torch import save_file

    shapes = {each.name: list(each.shape) for each in architecture.tensors}
    shards = _shards(shapes, dtype.itemsize, shard_bytes)
    names = {name: file for file, group in shards.items() for name in group}
    waiting: dict[str, Tensor] = {}
    for each in architecture.tensors:
        made = each.make(parameters).detach().to(device="cpu", dtype=dtype)
        waiting[each.name] = made.contiguous().clone()
        file = names[each.name]
        if len(waiting) == len(shards[file]):
            save_file(waiting, folder / file, metadata={"format": "pt"})
            waiting = {}
    if len(shards) > 1:
        total = sum(_bytes(shape, dtype.itemsize) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": names}
        write_json(folder / _INDEX, index)
    return shapes


def write_config(
    folder: Path,
    architecture: Architecture,
    *,
    tied: bool,
    dtype: torch.dtype,
    tokenizer: "PreTrainedTokenizerBase | None",
) -> None:
    """Write ``config.json``, ``generation_config.json``, the tokenizer and any code."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer, name, None) for name in names}
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    config: dict[str, Any] = {
        "architectures": [architecture.name],
        **architecture.config,
        **ids,
        "tie_word_embeddings": tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }
    write_json(folder / "config.json", config)
    if architecture.code is not None:
        shutil.copyfile(architecture.code, folder / architecture.code.name)
    generation = {name: value for name, value in ids.items() if value is not None}
    write_json(folder / "generation_config.json", {"do_sample": False, **generation})


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` as indented JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file in ``folder``, by name."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _shards(
    shapes: Mapping[str, list[int]], itemsize: int, shard_bytes: int
) -> dict[str, list[str]]:
    """Return which tensors go into which file, in order."""
    groups: list[list[str]] = list(_groups(shapes, itemsize, shard_bytes))
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    count = len(groups)
    return {
        f"model-{number:05d}-of-{count:05d}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def _groups(
    shapes: Mapping[str, list[int]], itemsize: int, shard_bytes: int
) -> Iterator[list[str]]:
    group: list[str] = []
    held = 0
    for name, shape in shapes.items():
        size = _bytes(shape, itemsize)
        if group and held + size > shard_bytes:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    yield group


def _bytes(shape: list[int], itemsize: int) -> int:
    return torch.Size(shape).numel() * itemsize
