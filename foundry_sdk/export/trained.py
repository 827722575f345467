"""Finds and loads the model of a run: from its folder, or from one of its checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from foundry_sdk.checkpoint.layout import STATE
from foundry_sdk.checkpoint.ranks import SoloRanks
from foundry_sdk.checkpoint.state import load_into
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.data.contract import TokenizerSpec
from foundry_sdk.data.finetuning.chatml import CHATML, CHATML_JINJA
from foundry_sdk.data.finetuning.spec import FinetuningDataSpec
from foundry_sdk.data.tokenizer import load_tokenizer
from foundry_sdk.errors import CheckpointError, SpecError
from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.models.huggingface.spec import HFModelSpec
from foundry_sdk.models.language_model import LanguageModel
from foundry_sdk.models.mpt.spec import MPTSpec
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.runs.record import read_run
from foundry_sdk.specs.converter import Mistakes, SpecConverter
from foundry_sdk.specs.document import load
from foundry_sdk.specs.places import dotted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPEC = "spec.yaml"
_CHECKPOINTS = "checkpoints"


@attrs.frozen(kw_only=True, eq=False)
class Trained:
    """A model as a checkpoint holds it, on the CPU, in evaluation mode.

    Attributes:
        model: with the checkpoint's weights.
        tokenizer: of the run; None where the checkpoint was taken away from its run. Where the run
            learned chats and it had no chat template, it has the one they were written with.
        checkpoint: the step folder.
        step: optimizer steps made.
    """

    model: LanguageModel
    tokenizer: "PreTrainedTokenizerBase | None"
    checkpoint: Path
    step: int


def load_trained(path: str | Path) -> Trained:
    """Load the model of a run, of a folder of checkpoints, or of one checkpoint.

    Raises:
        CheckpointError: there is no whole checkpoint, or it is of another model.
        SpecError: the run's ``spec.yaml`` names what is not installed here.
        DataError: the run's tokenizer cannot be loaded.
        RunFolderError: the run's record is damaged, so what it learned is not known.
    """
    given = Path(path)
    spec_file = _spec_file(given)
    values: dict[str, Any] = {} if spec_file is None else load(spec_file).values
    store = CheckpointStore(_checkpoints(given, values), SoloRanks())
    checkpoint = store.at(_checkpoints(given, values))
    if not values:
        state = json.loads((checkpoint.path / STATE).read_bytes())
        values = {"model": state.get("model")}
    if not isinstance(values.get("model"), dict):
        raise CheckpointError(f"{checkpoint.path}: nothing says which model this is")
    spec = structured(values["model"], ModelSpec, "model", spec_file or checkpoint.path)
    if isinstance(spec, MPTSpec) and spec.pretrained_model_name_or_path is not None:
        # what the run began from may be gone; its checkpoint holds all of the model
        described = json.loads((checkpoint.path / STATE).read_bytes())["model"]
        spec = structured(described, ModelSpec, "model", checkpoint.path)
    if isinstance(spec, HFModelSpec):
        spec = spec.unquantized()  # adapters go on the weights as their files have them
    tokenizer = None
    if "tokenizer" in values and spec_file is not None:
        named = structured(values["tokenizer"], TokenizerSpec, "tokenizer", spec_file)
        tokenizer = load_tokenizer(named)
        if not tokenizer.chat_template and _learned_chatml(spec_file.parent, values):
            tokenizer.chat_template = CHATML_JINJA
        spec = spec.for_vocabulary(len(tokenizer))
    model: LanguageModel = spec.build(device="cpu").eval()
    if not all(model.in_checkpoint(name) for name, _ in model.named_parameters()):
        model.init_weights(0)  # what is not in the checkpoint comes from files
    load_into(store, checkpoint, model)
    return Trained(
        model=model, tokenizer=tokenizer, checkpoint=checkpoint.path, step=checkpoint.manifest.step
    )


def _spec_file(path: Path) -> Path | None:
    """Return the ``spec.yaml`` of the run that ``path`` is, or lies in."""
    places = [path, path.parent, path.parent.parent]
    return next((place / _SPEC for place in places if (place / _SPEC).is_file()), None)


def _learned_chatml(run: Path, values: Mapping[str, Any]) -> bool:
    """Return whether a run learned chats, and all of them as ChatML; its record says so."""
    if values.get("train_loader", {}).get("name") != FinetuningDataSpec.kind:
        return False
    record = read_run(run) or {}
    sources = record.get("data", {}).get("train_loader", {}).get("sources", {})
    return {each.get("chat_template") for each in sources.values()} - {None} == {CHATML}


def _checkpoints(path: Path, values: dict[str, Any]) -> Path:
    """Return where to look: ``path`` itself, unless it is a run's folder."""
    if not (path / _SPEC).is_file():
        return path
    folder = values.get("save_folder")
    if folder is None or "://" in folder:  # its copies on this machine are the run's
        return path / _CHECKPOINTS
    return Path(folder)


def structured(values: Any, cls: Any, key: str, where: Path) -> Any:  # noqa: ANN401 - a YAML value
    """Return the spec that YAML values describe.

    Args:
        values: a mapping with ``name``, or the fields of ``cls``.
        cls: a spec's class, or a family's.
        key: what errors call it.
        where: the file, for errors.

    Raises:
        SpecError: they describe none.
    """
    converter = SpecConverter(PluginHost.from_environment().catalog(), {})
    try:
        return converter.value(values, cls)
    except Mistakes as found:
        lines = [f"{dotted((key, *at))}: {text} ({where})" for at, text in found.items]
        raise SpecError("\n".join(lines)) from found
