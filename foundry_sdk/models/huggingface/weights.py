"""Reads safetensors files into a model, sharded or not: each rank only its own part."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from foundry_sdk.errors import SpecError
from foundry_sdk.models.huggingface.naming import Naming
from foundry_sdk.models.init import copy_shard

_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"
_FILE_NAME: Final = re.compile(r"[^/\\\0:]+\.safetensors")
_SHOWN: Final = 5
_log = logging.getLogger(__name__)


Sink = tuple[Tensor, Callable[[Tensor], None]]
"""A tensor on the meta device with a parameter's shape in the files, and what takes its value."""


class WeightFiles:
    """The safetensors files of a folder.

    Attributes:
        folder: where they lie.
        places: file of each tensor.
        bytes_read: of tensors' content, so far.

    Args:
        folder: an existing one.
        single: name of the file where there is no index.

    Raises:
        SpecError: the folder has none, or one that its index names is missing.
    """

    def __init__(self, folder: Path, *, single: str = _SINGLE) -> None:
        self.folder = folder
        self.places = _places(folder, single)
        self.bytes_read = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor; reads headers only."""
        from safetensors import SafetensorError, safe_open

        shapes: dict[str, tuple[int, ...]] = {}
        for file, names in self._by_file(self.places):
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in names:
                        shapes[name] = tuple(opened.get_slice(name).get_shape())
            except SafetensorError as error:
                raise SpecError(f"model: {file} is damaged: {error}") from error
        return shapes

    def read(self, wanted: Mapping[str, tuple[slice, ...] | None]) -> Iterator[tuple[str, Tensor]]:
        """Yield each wanted tensor, or the part of it that slices say (None: the whole)."""
        from safetensors import safe_open

        for file, names in self._by_file(wanted):
            with safe_open(file, framework="pt") as opened:
                for name in names:
                    part = wanted[name]
                    tensor: Tensor = (
                        opened.get_tensor(name) if part is None else opened.get_slice(name)[part]
                    )
                    self.bytes_read += tensor.numel() * tensor.element_size()
                    yield name, tensor

    def _by_file(self, names: Iterable[str]) -> Iterator[tuple[Path, list[str]]]:
        grouped: dict[str, list[str]] = {}
        for name in names:
            grouped.setdefault(self.places[name], []).append(name)
        for file in sorted(grouped):
            yield self.folder / file, grouped[file]


@torch.no_grad()
def load_weights(
    module: Any,  # noqa: ANN401 - a transformers model
    files: WeightFiles,
    *,
    parameters: Mapping[str, Tensor],
    tied: Mapping[str, str],
    resized: frozenset[str] = frozenset(),
    sinks: Mapping[str, Sink] = MappingProxyType({}),
) -> None:
    """Fill ``parameters``, and persistent buffers of ``module``, from ``files``.

    Of a ``DTensor`` only this rank's part is read.

    Args:
        module: names the tensors as transformers does.
        files: where they are.
        parameters: by name in ``module``.
        tied: other names of parameters.
        resized: parameters that may have more rows than the files; the new ones become the mean
            of the others.
        sinks: what takes a parameter's whole value where it is not copied into the parameter; the
            parameter's own shape is then of no meaning.

    Raises:
        SpecError: the files have other tensors than the module, by name or shape.
    """
    buffers = _persistent_buffers(module)
    shaped = {name: shape for name, (shape, _) in sinks.items()}
    targets: dict[str, Tensor] = {**parameters, **shaped, **buffers}
    naming = Naming(module, targets, tied)
    names = naming.targets(files.places)
    missing = sorted(set(parameters) - set(names.values()))
    extra = sorted(name for name in files.places if not naming.is_ignored(name))
    if (missing or extra) and naming.needs_conversion(files.places):
        if sinks:
            raise SpecError(
                f"model.quantization_config: the tensors of {type(module).__name__} are put "
                "together from several in the files, which cannot be quantized here"
            )
        _load_converted(module, files.folder, targets)
        return
    shapes = files.shapes()
    grown = {
        target: name
        for name, target in names.items()
        if target in resized and _has_fewer_rows(shapes[name], targets[target])
    }
    wrong = [
        f"{name}: {list(shapes[name])} in the files, {list(targets[target].shape)} in the model"
        for name, target in names.items()
        if target not in grown and shapes[name] != tuple(targets[target].shape)
    ]
    refuse_differences(files.folder, missing=missing, extra=extra, wrong=wrong)
    parts = {
        name: None if target in grown else own_part(targets[target])
        for name, target in names.items()
    }
    for name, tensor in files.read({n: p for n, p in parts.items() if p != ()}):
        target = targets[names[name]]
        if names[name] in sinks:
            sinks[names[name]][1](tensor)
        elif names[name] in grown:
            copy_shard(target, _with_more_rows(tensor, target.shape[0]))
        else:
            local(target).copy_(tensor)


def _places(folder: Path, name: str) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    index = folder / _INDEX
    if index.is_file():
        places = _weight_map(index)
        absent = sorted(file for file in set(places.values()) if not (folder / file).is_file())
        if absent:
            raise SpecError(f"model: {folder} lacks {', '.join(absent)}, which {_INDEX} names")
        return places
    single = folder / name
    if single.is_file():
        try:
            with safe_open(single, framework="pt") as opened:
                return dict.fromkeys(opened.keys(), name)
        except SafetensorError as error:
            raise SpecError(f"model: {single} is damaged: {error}") from error
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise SpecError(
            f"model: {folder} has its weights in {pickled[0]}, a pickle, which can run code when "
            'it is read; convert it once, where you trust it: python -c "from transformers import '
            f"AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('OUT')\""
        )
    raise SpecError(
        f"model: {folder} has no weights ({_SINGLE}); set model.pretrained: false to begin with "
        "new ones"
    )


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor; only files of that folder, whatever the index says.

    Raises:
        SpecError: it is no index, or names something else.
    """
    try:
        values = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SpecError(f"model: {index} is damaged: {error}") from error
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places:
        raise SpecError(f"model: {index} has no weight_map")
    for name, file in places.items():
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise SpecError(
                f"model: {index}: {name!r} lies in {file!r}; expected the name of a .safetensors "
                "file of this folder"
            )
    return places


def _load_converted(module: Any, folder: Path, targets: Mapping[str, Tensor]) -> None:  # noqa: ANN401
    """Let transformers put the tensors together, whole and on the CPU, and take this rank's part.

    Raises:
        SpecError: it finds other tensors than the model has.
    """
    _log.warning(
        "%s: its parameters are put together from several tensors each, by transformers, so "
        "every process holds all of them while it loads",
        type(module).__name__,
    )
    loaded, loading = type(module).from_pretrained(
        str(folder),
        config=deepcopy(module.config),
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
    )
    values = {**dict(loaded.named_parameters()), **_persistent_buffers(loaded)}
    missing = sorted(set(targets) & set(loading["missing_keys"]) | set(targets) - set(values))
    wrong = [str(each[0]) for each in loading["mismatched_keys"]]
    refuse_differences(
        folder, missing=missing, extra=sorted(loading["unexpected_keys"]), wrong=wrong
    )
    for name, target in targets.items():
        copy_shard(target, values[name].detach())


def _persistent_buffers(module: Any) -> dict[str, Tensor]:  # noqa: ANN401
    return {
        f"{path}.{name}" if path else name: buffer
        for path, owner in module.named_modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and name not in owner._non_persistent_buffers_set
    }


def refuse_differences(
    folder: Path, *, missing: list[str], extra: list[str], wrong: list[str]
) -> None:
    """Refuse files that have other tensors than the model; names the first few of each kind.

    Raises:
        SpecError: there is one.
    """
    lines = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{' …' if len(names) > _SHOWN else ''}"
        for names, what in (
            (missing, "tensor(s) of the model are not in the files"),
            (extra, "tensor(s) in the files have no place in the model"),
            (wrong, "tensor(s) have another shape"),
        )
        if names
    ]
    if lines:
        raise SpecError(
            f"model: the weights in {folder} are not those of the config\n" + "\n".join(lines)
        )


def _has_fewer_rows(shape: tuple[int, ...], target: Tensor) -> bool:
    return shape[0] < target.shape[0] and shape[1:] == tuple(target.shape[1:])


def _with_more_rows(tensor: Tensor, rows: int) -> Tensor:
    """Return ``tensor`` with rows added that are the mean of its own (float32)."""
    whole = tensor.float()
    mean = whole.mean(0, keepdim=True)
    return torch.cat([whole, mean.expand(rows - whole.shape[0], *whole.shape[1:])])


def own_part(target: Tensor) -> tuple[slice, ...] | None:
    """Return this rank's part of a tensor; None = the whole, () = nothing."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(target, DTensor) or target.dim() == 0:
        return None
    shape, offset = compute_local_shape_and_global_offset(
        target.shape, target.device_mesh, target.placements
    )
    if 0 in shape:
        return ()
    return tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))


def local(target: Tensor) -> Tensor:
    """Return this rank's part of a tensor: of an ordinary one, the whole."""
    from torch.distributed.tensor import DTensor

    return target.to_local() if isinstance(target, DTensor) else target
