"""Whether the tensors of a checkpoint are those that a model and optimizer have."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from foundry_sdk.checkpoint.layout import TensorEntry
from foundry_sdk.errors import CheckpointError

_log = logging.getLogger(__name__)
_SHOWN = 5


def check_matching(
    path: Path,
    stored: Mapping[str, TensorEntry],
    wanted: Mapping[str, Tensor],
    *,
    prefix: str,
    strict: bool,
) -> dict[str, Tensor]:
    """Return the part of ``wanted`` that the checkpoint has.

    Args:
        path: of the checkpoint, for messages.
        stored: what the checkpoint has.
        wanted: destinations by name.
        prefix: names of the checkpoint that do not start with it are not missed.
        strict: both sides must have the same names.

    Raises:
        CheckpointError: names differ and ``strict`` is set, or shapes differ.
    """
    considered = {name for name in stored if name.startswith(prefix)}
    missing = sorted(set(wanted) - considered)
    extra = sorted(considered - set(wanted))
    shapes = [
        f"{name}: {list(stored[name].shape)} in the checkpoint, {list(tensor.shape)} here"
        for name, tensor in wanted.items()
        if name in considered and tuple(tensor.shape) != stored[name].shape
    ]
    complaints = [
        *_listed(shapes, "tensor(s) of another shape"),
        *(_listed(missing, "tensor(s) missing in the checkpoint") if strict else ()),
        *(_listed(extra, "tensor(s) of the checkpoint have no place here") if strict else ()),
    ]
    if complaints:
        raise CheckpointError(f"{path} is of another model or optimizer\n" + "\n".join(complaints))
    for line in (
        *_listed(missing, "tensor(s) keep their values, being missing in the checkpoint"),
        *_listed(extra, "tensor(s) of the checkpoint are left out"),
    ):
        _log.warning("%s: %s", path, line)
    matching = {name: tensor for name, tensor in wanted.items() if name in considered}
    cast = [
        f"{name}: {stored[name].dtype} to {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in matching.items()
        if stored[name].dtype != str(tensor.dtype).removeprefix("torch.")
    ]
    for line in _listed(cast, "tensor(s) converted while loading"):
        _log.warning("%s: %s", path, line)
    return matching


def _listed(names: Iterable[str], what: str) -> list[str]:
    """Return one line with the count and the first names, or none where there are no names."""
    names = list(names)
    if not names:
        return []
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"]
