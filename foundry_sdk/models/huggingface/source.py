"""Where a model's config and weights come from: a folder, or a snapshot of the hub."""

import difflib
import textwrap
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk import hub
from foundry_sdk.errors import SpecError
from foundry_sdk.models.huggingface.spec import HFModelSpec

_NAME: Final = "model.pretrained_model_name_or_path"
_FILES: Final = ["*.json", "*.py"]
_DTYPE: Final = "parameters are float32, and the run's precision says what is computed in"
_ELSEWHERE: Final = {
    "attn_implementation": "say model.attn_implementation",
    "_attn_implementation": "say model.attn_implementation",
    "dtype": _DTYPE,
    "torch_dtype": _DTYPE,
}
"""Values of a config that do not come from there."""
_WEIGHTS: Final = ["*.safetensors", "*.safetensors.index.json"]


@attrs.frozen(kw_only=True)
class Source:
    """A folder with a config, and with weights where ``spec.pretrained`` says so.

    Attributes:
        spec: what asked for it.
        folder: a local one, of the user or of the hub's cache.
    """

    spec: HFModelSpec
    folder: Path

    def config(self) -> Any:  # noqa: ANN401 - a PretrainedConfig of any class
        """Return the config with the overrides in it.

        Raises:
            SpecError: there is no config that transformers knows, or an override does not fit it.
        """
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(
                str(self.folder),
                trust_remote_code=self.spec.trust_remote_code,
                local_files_only=not self.spec.trust_remote_code,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise SpecError(
                f"{_NAME}: no config of a model that transformers knows in {self.folder} "
                f"({_first_line(error)}); the folder needs config.json with its model_type"
            ) from error
        override(config, self.spec.config_overrides, "model.config_overrides")
        config.use_cache = False
        return config


def find_source(spec: HFModelSpec) -> Source:
    """Return where ``spec`` lies; from the hub, config and weights are downloaded.

    Raises:
        SpecError: there is no such folder, or the hub does not have it or cannot be reached.
    """
    name = spec.pretrained_model_name_or_path
    folder = Path(name).expanduser()
    if folder.is_dir():
        if spec.revision is not None and not spec.trust_remote_code:
            raise SpecError(f"model.revision: {name!r} is a local folder, which has no revisions")
        return Source(spec=spec, folder=folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise SpecError(
            f"{_NAME}: there is no folder {name!r} (working directory {Path.cwd()}); give an "
            "existing folder with config.json, or a name on the hub such as 'gpt2'"
        )
    return Source(spec=spec, folder=_downloaded(spec))


def _downloaded(spec: HFModelSpec) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name = spec.pretrained_model_name_or_path
    try:
        path = snapshot_download(
            name,
            revision=spec.revision,
            allow_patterns=_FILES + (_WEIGHTS if spec.pretrained else []),
            local_files_only=not hub.can_be_reached(),
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise SpecError(
            f"{_NAME}: {name!r} is no local folder and could not be read from the hub: the network "
            f"is disabled, the name does not exist, or HF_TOKEN may not read it "
            f"({_first_line(error)}); give the folder of a model, or check the name"
        ) from error
    return Path(path)


def override(config: Any, values: Mapping[str, Any], path: str) -> None:  # noqa: ANN401
    """Set values of ``config``; a mapping goes into a nested config or mapping, key by key.

    Raises:
        SpecError: a key that the config does not have.
    """
    known = set(config.to_dict()) | set(getattr(config, "attribute_map", {}))
    for key, value in values.items():
        where = f"{path}.{key}"
        if key in _ELSEWHERE:
            raise SpecError(f"{where}: without effect here; {_ELSEWHERE[key]}")
        if key not in known:
            raise SpecError(
                f"{where}: {type(config).__name__} has no such value; {nearest(key, known)}"
            )
        present = getattr(config, key)
        if not isinstance(value, Mapping):
            if isinstance(present, Mapping) or hasattr(present, "to_dict"):
                raise SpecError(f"{where}: expected a mapping, got {value!r}")
            setattr(config, key, value)
        elif hasattr(present, "to_dict"):
            override(present, value, where)
        elif present is None:
            setattr(config, key, dict(value))
        elif isinstance(present, Mapping):
            unknown = [each for each in value if each not in present]
            if unknown:
                raise SpecError(
                    f"{where}.{unknown[0]}: not known; {nearest(unknown[0], set(present))}"
                )
            setattr(config, key, {**deepcopy(dict(present)), **value})
        else:
            raise SpecError(f"{where}: expected a value like {present!r}, got a mapping")


def nearest(key: str, known: set[str]) -> str:
    """Return a hint at what ``key`` may have meant."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"


def _first_line(error: BaseException) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    return textwrap.shorten(line.strip(), 200)
