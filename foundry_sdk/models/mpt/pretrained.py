"""An MPT whose config and weights are somewhere else: a run, an export, or a checkpoint's files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from foundry_sdk.checkpoint.layout import STATE
from foundry_sdk.checkpoint.ranks import SoloRanks
from foundry_sdk.checkpoint.state import load_into
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.errors import CheckpointError, SpecError
from foundry_sdk.models.huggingface.mpt import (
    ImportedMPT,
    fastest_kernel,
    read_config,
    spec_from_values,
)
from foundry_sdk.models.huggingface.source import find_source
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec
from foundry_sdk.models.huggingface.weights import WeightFiles
from foundry_sdk.models.mpt.exported import read_counterparts, read_record
from foundry_sdk.models.mpt.layouts import LAYOUTS
from foundry_sdk.models.mpt.model import MPT
from foundry_sdk.models.mpt.options import AttentionSpec
from foundry_sdk.models.mpt.spec import MPTSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHECKPOINTS: Final = "checkpoints"
_NAME: Final = "model.pretrained_model_name_or_path"
_ABOUT_FILES: Final = ("pretrained_model_name_or_path", "pretrained", "revision")
_SAID_HERE: Final = {
    *("model.resid_pdrop", "model.emb_pdrop", "model.embedding_fraction", "model.init_device"),
    *("model.activation_checkpointing_target", "model.attn_config.attn_pdrop"),
    *("model.attn_config.attn_impl", "model.attn_config.attn_uses_sequence_id"),
}
"""Options of training: the spec's own value counts, its default too."""
_REPLACEABLE: Final = {"model.init_config"}
"""Options that a spec may say otherwise than the folder."""


@attrs.frozen(kw_only=True)
class Origin:
    """Where an MPT comes from.

    Attributes:
        spec: the whole description, that of the folder with the training options of the asker.
        folder: of the files, or of the checkpoint.
        layout: ``files``: safetensors beside a ``config.json``; ``checkpoint``: one of a run.
        architecture: class of transformers whose names and shapes the files have; None = our own.
    """

    spec: MPTSpec
    folder: Path
    layout: Literal["files", "checkpoint"]
    architecture: str | None = None


class ContinuedMPT(MPT):
    """An MPT whose weights come from a checkpoint of a run.

    Args:
        spec: the whole description.
        checkpoint: a step folder.
        device: ``"cpu"``, ``"cuda"``, ``"meta"`` …; values are not initialised.
    """

    def __init__(self, spec: MPTSpec, *, checkpoint: Path, device: str) -> None:
        super().__init__(spec, device=device)
        self._checkpoint = checkpoint

    def init_weights(self, seed: int) -> None:
        """Read the weights; of sharded parameters each rank its own part.

        Raises:
            CheckpointError: a file is damaged, or a tensor is missing, left over or of another
                shape.
        """
        del seed
        # each rank by itself: all of them see the same files, so all of them agree
        store = CheckpointStore(self._checkpoint.parent, SoloRanks())
        load_into(store, store.at(self._checkpoint), self)

    def choices(self) -> dict[str, str]:
        """Say where the weights are from, and which attention it has."""
        return _choices(self.spec, self._checkpoint)


class ConvertedMPT(MPT):
    """An MPT whose weights come from an export as another architecture.

    Args:
        spec: the whole description.
        folder: of the export.
        architecture: class of transformers that its files are of.
        device: ``"cpu"``, ``"cuda"``, ``"meta"`` …; values are not initialised.
    """

    def __init__(self, spec: MPTSpec, *, folder: Path, architecture: str, device: str) -> None:
        super().__init__(spec, device=device)
        self._folder = folder
        self._architecture = architecture

    def init_weights(self, seed: int) -> None:
        """Read the weights; of sharded parameters each rank its own part.

        Raises:
            SpecError: a tensor is missing, left over or of another shape.
        """
        del seed
        layout = LAYOUTS[self._architecture](self.spec)
        read_counterparts(WeightFiles(self._folder), layout, dict(self.named_parameters()))

    def choices(self) -> dict[str, str]:
        """Say where the weights are from, and which attention it has."""
        return _choices(self.spec, self._folder)


class ReadMPT(ImportedMPT):
    """An MPT whose weights come from files beside a ``config.json``."""

    def choices(self) -> dict[str, str]:
        """Say where the weights are from, and which attention it has."""
        return {} if self._folder is None else _choices(self.spec, self._folder)


def build_pretrained(asked: MPTSpec, *, device: str) -> MPT:
    """Return the model that ``asked`` names, without values yet.

    Raises:
        SpecError: there is no MPT, or it differs from what ``asked`` says.
    """
    origin = find_origin(asked)
    if origin.layout == "checkpoint" and asked.pretrained:
        return ContinuedMPT(origin.spec, checkpoint=origin.folder, device=device)
    if origin.architecture is not None and asked.pretrained:
        return ConvertedMPT(
            origin.spec, folder=origin.folder, architecture=origin.architecture, device=device
        )
    folder = origin.folder if asked.pretrained else None
    return ReadMPT(origin.spec, folder=folder, device=device)


def find_origin(asked: MPTSpec) -> Origin:
    """Return where the MPT that ``asked`` names is, with the whole description of it.

    Raises:
        SpecError: as ``build_pretrained``.
    """
    name = asked.pretrained_model_name_or_path
    if name is None:
        raise ValueError("the spec names no folder")
    place, architecture = Path(name).expanduser(), None
    values: Mapping[str, Any]
    if place.is_dir() and not (place / "config.json").is_file():
        folder, values = _of_run(place)
        layout: Literal["files", "checkpoint"] = "checkpoint"
    else:
        named = HFCausalLMSpec(
            pretrained_model_name_or_path=name, pretrained=asked.pretrained, revision=asked.revision
        )
        folder, layout = find_source(named).folder, "files"
        record = read_record(folder)
        if record is None:
            values = read_config(folder)
        else:
            values, architecture = record.values, record.architecture
    described = spec_from_values(values, folder, f"{folder}: the config's model")
    return Origin(
        spec=_joined(asked, described, folder),
        folder=folder,
        layout=layout,
        architecture=architecture,
    )


def _of_run(place: Path) -> tuple[Path, dict[str, Any]]:
    """Return a run's newest whole checkpoint and what its state says of the model.

    Raises:
        SpecError: there is none, or it is of another model.
    """
    inside = place / _CHECKPOINTS
    given = inside if inside.is_dir() else place
    try:
        found = CheckpointStore(given, SoloRanks()).at(given)
    except CheckpointError as error:
        raise SpecError(
            f"{_NAME}: {place} has neither a config.json nor a whole checkpoint: {error}"
        ) from error
    state = json.loads((found.path / STATE).read_bytes())
    values = state.get("model") or {}
    if values.get("name") != MPTSpec.kind:
        raise SpecError(
            f"{_NAME}: the model in {found.path} is no {MPTSpec.kind} but "
            f"{values.get('name', 'one without a description')!r}; export it "
            "(`foundry export`) and begin from there with that name"
        )
    return found.path, {key: value for key, value in values.items() if key not in _ABOUT_FILES}


def _joined(asked: MPTSpec, described: MPTSpec, folder: Path) -> MPTSpec:
    """Return ``described`` with the training options of ``asked``.

    Raises:
        SpecError: ``asked`` says something else; every such option is listed.
    """
    differences: list[str] = []
    try:
        joined = MPTSpec(**_compared(asked, described, "model", differences))
    except ValueError as error:
        raise SpecError(f"model: the MPT in {folder}: {error}") from error
    if differences:
        lines = "\n".join(f"{each} in {folder}" for each in differences)
        raise SpecError(
            f"{lines}\na model has the config that its weights were trained with: leave out what "
            "the folder says"
        )
    if asked.attn_config.attn_impl != AttentionSpec().attn_impl:
        return joined
    return fastest_kernel(joined, wanted=None)


def _compared(asked: Any, described: Any, path: str, differences: list[str]) -> dict[str, Any]:  # noqa: ANN401
    """Return the fields of ``described`` where ``asked`` may not say otherwise."""
    found: dict[str, Any] = {}
    for field in attrs.fields(type(asked)):
        name = field.name
        if path == "model" and name in _ABOUT_FILES:
            continue
        where = f"{path}.{name}"
        own, there = getattr(asked, name), getattr(described, name)
        default = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory()
        if where in _SAID_HERE or own == there:
            found[name] = own
        elif attrs.has(type(own)) and where not in _REPLACEABLE:
            found[name] = type(own)(**_compared(own, there, where, differences))
        elif own == default:
            found[name] = there
        elif where in _REPLACEABLE or (where == "model.max_seq_len" and _any_length(described)):
            found[name] = own
        else:
            differences.append(f"{where}: {own!r} here, {there!r}")
            found[name] = there
    return found


def _any_length(described: MPTSpec) -> bool:
    """Return whether weights and positions are the same whatever ``max_seq_len`` is."""
    scaling = described.attn_config.rope_hf_config.type if described.attn_config.rope else None
    return not described.learned_positions and scaling != "dynamic"


def _choices(spec: MPTSpec, folder: Path) -> dict[str, str]:
    sizes = {
        name: getattr(spec, name)
        for name in ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size")
    }
    return {
        "model": f"MPT from {folder}: " + ", ".join(f"{k} {v}" for k, v in sizes.items()),
        "model.attn_config.attn_impl": spec.attn_config.attn_impl,
    }
