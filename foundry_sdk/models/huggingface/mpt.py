"""MPT checkpoints of the hub's layout (mosaicml/mpt-7b …), without the code that they carry."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import torch

from foundry_sdk.errors import SpecError
from foundry_sdk.models.huggingface.source import Source, find_source, nearest
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec
from foundry_sdk.models.huggingface.weights import WeightFiles, load_weights
from foundry_sdk.models.mpt.kernels import unsupported
from foundry_sdk.models.mpt.model import MPT
from foundry_sdk.models.mpt.options import (
    AttentionSpec,
    AttentionTemperatureSpec,
    FFNSpec,
    InitSpec,
    RopeDailSpec,
    RopeHFSpec,
)
from foundry_sdk.models.mpt.spec import MPTSpec

_RENAMED: Final = {"layer_norm_epsilon": "norm_eps"}
_ABOUT_FILES: Final = {
    *("architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "init_device"),
    *("initializer_range", "model_type", "name", "pad_token_id", "tokenizer_name", "torch_dtype"),
    *("transformers_version", "use_cache", "verbose", "_name_or_path"),
    *("pretrained_model_name_or_path", "pretrained", "revision"),
}
"""Keys of a config that say nothing about what the model computes."""
_NESTED: Final = {
    "attn_config": AttentionSpec,
    "attn_temperature_tuning": AttentionTemperatureSpec,
    "ffn_config": FFNSpec,
    "init_config": InitSpec,
    "rope_dail_config": RopeDailSpec,
    "rope_hf_config": RopeHFSpec,
}
_CUSTOM: Final = "foundry_mpt"
"""``model_type`` of exports with code of their own."""
_HEAD: Final = "lm_head.weight"
_EMBEDDINGS: Final = "transformer.wte.weight"


class ImportedMPT(MPT):
    """An MPT whose weights come from files of the hub's layout.

    Args:
        spec: as the config describes it.
        folder: of the weights; None = new ones.
        device: ``"cpu"``, ``"cuda"``, ``"meta"`` …; values are not initialised.
    """

    base_model_prefix = "transformer"

    def __init__(self, spec: MPTSpec, *, folder: Path | None, device: str) -> None:
        super().__init__(spec, device=device)
        self._folder = folder

    def init_weights(self, seed: int) -> None:
        """Read the weights; of sharded parameters each rank its own part."""
        if self._folder is None:
            super().init_weights(seed)
            return
        tied = {_HEAD: _EMBEDDINGS} if self.spec.tie_word_embeddings else {}
        parameters = dict(self.named_parameters())
        load_weights(self, WeightFiles(self._folder), parameters=parameters, tied=tied)

    def choices(self) -> dict[str, str]:
        """Say which attention it has, and that it is ours."""
        return {
            "model": "MPT as mpt_causal_lm: the code of the checkpoint is not run",
            "model.attn_config.attn_impl": self.spec.attn_config.attn_impl,
        }


def imported(asked: HFCausalLMSpec, spec: MPTSpec, *, device: str) -> ImportedMPT:
    """Build an MPT that was asked for as ``hf_causal_lm``.

    Raises:
        SpecError: with an option that the SDK's own MPT does not have.
    """
    options = {
        "peft_config": asked.peft_config is not None,
        "pretrained_lora_id_or_path": asked.pretrained_lora_id_or_path is not None,
        "resize_embeddings": asked.resizes,
        "attn_implementation": asked.attention is not None,
    }
    for name, used in options.items():
        if used:
            raise SpecError(
                f"model.{name}: an MPT is trained as mpt_causal_lm, which does not have it"
                + ("; use config_overrides.attn_config.attn_impl" * (name == "attn_implementation"))
            )
    folder = find_source(asked).folder if asked.pretrained else None
    return ImportedMPT(spec, folder=folder, device=device)


def mpt_spec(source: Source) -> MPTSpec | None:
    """Return the spec that equals an MPT's config; None if it is of another model.

    Raises:
        SpecError: the config, or an override, has what no ``mpt_causal_lm`` has.
    """
    file = source.folder / "config.json"
    if not file.is_file() or _json(file).get("model_type") not in {"mpt", _CUSTOM}:
        return None
    config, given = read_config(source.folder), source.spec.config_overrides
    whole = {**config, **_merged(config, given)}
    spec = spec_from_values(whole, source.folder, "model.config_overrides")
    chosen = given.get("attn_config", {})
    wanted = chosen.get("attn_impl") if isinstance(chosen, Mapping) else None
    return fastest_kernel(spec, wanted=wanted)


def read_config(folder: Path) -> dict[str, Any]:
    """Return what the ``config.json`` of an MPT says of the model.

    Raises:
        SpecError: there is none, or it is of another model.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise SpecError(f"model.pretrained_model_name_or_path: {folder} has no config.json")
    config = _json(file)
    kind = config.get("model_type")
    if kind == _CUSTOM:
        described: dict[str, Any] = config["mpt"]
        return described
    if kind != "mpt":
        raise SpecError(
            f"model.pretrained_model_name_or_path: the model in {folder} is no MPT, its "
            f"model_type is {kind!r}; use name: hf_causal_lm"
        )
    return config


def spec_from_values(values: Mapping[str, Any], folder: Path, path: str) -> MPTSpec:
    """Return the spec that equals an MPT's config.

    Args:
        values: of the config, under the names of LLM Foundry or of transformers.
        folder: where it was read.
        path: what an error calls the values.

    Raises:
        SpecError: no ``mpt_causal_lm`` has one of the values.
    """
    try:
        return MPTSpec(**_fields(values, MPTSpec, path))
    except SpecError:
        raise
    except (TypeError, ValueError) as error:
        raise SpecError(f"model: the MPT in {folder}: {error}") from error


def fastest_kernel(spec: MPTSpec, *, wanted: str | None) -> MPTSpec:
    """Return ``spec`` with the wanted attention, or else the fastest that computes it here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reasons = unsupported(spec.attn_config, device)
    if wanted is not None and wanted not in reasons:
        return spec
    # files for LLM Foundry ask for flash also where only another kernel here has ALiBi
    fastest = next(name for name in ("flash", "flex", "torch") if name not in reasons)
    return attrs.evolve(spec, attn_config=attrs.evolve(spec.attn_config, attn_impl=fastest))


def _json(file: Path) -> dict[str, Any]:
    """Return a JSON file's mapping.

    Raises:
        SpecError: it is none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SpecError(f"model: {file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise SpecError(f"model: {file}: expected a mapping, got {type(found).__name__}")
    return found


def _merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides with what the config's nested values say besides."""
    return {
        key: {**(config.get(key) or {}), **value} if isinstance(value, Mapping) else value
        for key, value in overrides.items()
    }


def _fields(values: Mapping[str, Any], cls: type, path: str) -> dict[str, Any]:
    """Return arguments for ``cls``.

    Raises:
        SpecError: a key that it does not have, and that changes what the model computes.
    """
    from transformers import PretrainedConfig

    known = {field.alias or field.name for field in attrs.fields(cls)}
    # what every config of transformers has says nothing of an MPT, which has names of its own
    silent = _ABOUT_FILES if cls is MPTSpec else _ABOUT_FILES - known
    silent = silent | (set(PretrainedConfig().to_dict()) - known)
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = _RENAMED.get(key, key)
        if name in _NESTED and isinstance(value, Mapping):
            nested = _NESTED[name]
            found[name] = nested(**_fields(value, nested, f"{path}.{name}"))
        elif name in known and name not in silent:
            found[name] = tuple(value) if isinstance(value, list) else value
        elif value is not None and value is not False and name not in silent:
            raise SpecError(f"{path}.{key}: no mpt_causal_lm has it; {nearest(key, known)}")
    if cls is InitSpec and found.get("name") != "baseline_":
        found.pop("init_std", None)  # files of the hub name it for every scheme
    # implementations of old checkpoints that are not there any more
    if cls is AttentionSpec and found.get("attn_impl") not in {"flash", "flex", "torch"}:
        found.pop("attn_impl", None)
    return found
