"""An MPT in an exported folder whose files are those of an architecture of transformers."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from torch import Tensor

from foundry_sdk.errors import SpecError
from foundry_sdk.models.huggingface.weights import (
    WeightFiles,
    local,
    own_part,
    refuse_differences,
)
from foundry_sdk.models.mpt.layouts import LAYOUTS, Counterpart

CERTIFICATE: Final = "certificate.json"
"""File of an export that says, among other things, which MPT it is of."""
_CONFIG: Final = "config.json"
_NAME: Final = "model.pretrained_model_name_or_path"
_NATIVE: Final = {"gpt2", "gpt_neox", "llama"}
"""``model_type`` of files that say nothing of an MPT themselves."""


@attrs.frozen(kw_only=True)
class ExportRecord:
    """What an export says of the MPT that it was made of.

    Attributes:
        architecture: class of transformers that the files are of; one of ``LAYOUTS``.
        values: fields of the MPT's spec.
    """

    architecture: str
    values: Mapping[str, Any]


def read_record(folder: Path) -> ExportRecord | None:
    """Return what an export says of its MPT; None where the files speak for themselves.

    Raises:
        SpecError: the files are of another architecture and nothing says which MPT they are, or
            ``config.json`` is not the one that was exported.
    """
    config_file = folder / _CONFIG
    if not config_file.is_file():
        return None
    kind = _json(config_file).get("model_type")
    certificate = _json(folder / CERTIFICATE) if (folder / CERTIFICATE).is_file() else {}
    values, architecture = certificate.get("mpt"), certificate.get("architecture")
    if (
        not isinstance(values, dict)
        or not isinstance(architecture, str)
        or architecture not in LAYOUTS
    ):
        if kind in _NATIVE:
            raise SpecError(
                f"{_NAME}: the model in {folder} is no MPT, its model_type is {kind!r}, and there "
                f"is no {CERTIFICATE} that says which MPT it was exported from; use name: "
                "hf_causal_lm"
            )
        return None
    now = hashlib.sha256(config_file.read_bytes()).hexdigest()
    if certificate.get("sha256", {}).get(_CONFIG) != now:
        if kind not in _NATIVE:
            return None  # an MPT's own config says all that there is to know
        raise SpecError(
            f"{_NAME}: {config_file} was changed since the export, so it is no longer the MPT of "
            f"{CERTIFICATE}; export the run again, or use name: hf_causal_lm"
        )
    return ExportRecord(architecture=architecture, values=values)


@torch.no_grad()
def read_counterparts(
    files: WeightFiles, layout: Sequence[Counterpart], parameters: Mapping[str, Tensor]
) -> None:
    """Fill ``parameters`` from files of another architecture: the way back of ``make``.

    Values are the very ones of the files. Only where the export multiplied by a factor they are
    divided by it, and may be one unit in the last place off.

    Args:
        files: of the export.
        layout: every tensor that must be in them.
        parameters: of the MPT, by name; of a ``DTensor`` are read the rows from the first to the
            last that this rank holds.

    Raises:
        SpecError: the files have other tensors, values where the MPT has no parameter, or values
            that the export multiplied by 0.
    """
    if any(block.factor == 0 for each in layout for block in each.blocks):
        raise SpecError(
            f"model: the export in {files.folder} multiplied weights by 0 (model.logit_scale or "
            "model.attn_config.softmax_scale), so they are lost; begin from the run"
        )
    shapes = files.shapes()
    expected = {each.name: each.shape for each in layout}
    wrong = [
        f"{name}: {list(shapes[name])} in the files, {list(shape)} in the model"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    refuse_differences(
        files.folder,
        missing=sorted(expected.keys() - shapes),
        extra=sorted(shapes.keys() - expected),
        wrong=wrong,
    )
    pieces = {each.name: list(_pieces(each, parameters)) for each in layout}
    transposed = {each.name: each.transposed for each in layout}
    firsts = {name: min(each.row for each in found) for name, found in pieces.items() if found}
    wanted = {}
    for name, first in firsts.items():
        rows = slice(first, max(each.row + each.count for each in pieces[name]))
        others = [slice(0, size) for size in expected[name]]
        wanted[name] = (others[0], rows) if transposed[name] else (rows, *others[1:])
    for name, tensor in files.read(wanted):
        rows_there = tensor.T if transposed[name] else tensor
        for piece in pieces[name]:
            start = piece.row - firsts[name]
            values = rows_there[start : start + piece.count]
            if not piece.take(values):
                raise SpecError(
                    f"model: {files.folder}: {name} is not 0, and the MPT that was exported has "
                    "no such bias"
                )


@attrs.frozen(kw_only=True, eq=False)
class _Piece:
    """Rows of a file's tensor that this process needs.

    Attributes:
        row: the first of them there.
        count: how many.
        target: where they go: a part of a parameter, ordinary; None = they must be zeros.
        columns: those of them that this process holds.
        factor: that they were multiplied by.
    """

    row: int
    count: int
    target: Tensor | None = None
    columns: tuple[slice, ...] = ()
    factor: float = 1.0

    def take(self, values: Tensor) -> bool:
        """Copy ``values`` to the target; return False where there is none and they are not 0."""
        if self.target is None:
            return not values.any()
        own = values[(slice(None), *self.columns)]
        if self.factor != 1.0:
            own = own.double() / torch.tensor(self.factor).double()  # as rounded to float32
        self.target.copy_(own)
        return True


def _pieces(counterpart: Counterpart, parameters: Mapping[str, Tensor]) -> Iterator[_Piece]:
    """Yield what this process needs of a tensor."""
    begin = 0
    for block in counterpart.blocks:
        if block.parameter is None:
            yield _Piece(row=begin, count=len(block))
        else:
            parameter = parameters[block.parameter]
            own = own_part(parameter)
            if own is None:
                own = tuple(slice(0, size) for size in parameter.shape)
            if own != ():
                first, stop = max(block.start, own[0].start), min(block.stop, own[0].stop)
                if first < stop:
                    yield _Piece(
                        row=begin + first - block.start,
                        count=stop - first,
                        target=local(parameter)[first - own[0].start : stop - own[0].start],
                        columns=own[1:],
                        factor=block.factor,
                    )
        begin += len(block)


def _json(file: Path) -> dict[str, Any]:
    """Return a JSON file's mapping.

    Raises:
        SpecError: it is none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{_NAME}: {file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise SpecError(f"{_NAME}: {file}: expected a mapping, got {type(found).__name__}")
    return found
