"""Opens models that lie in files of transformers or peft, in a folder or on the hub."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch

from foundry_sdk import hub
from foundry_sdk.errors import CheckpointError, SpecError
from foundry_sdk.export.trained import structured
from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.models.huggingface.mpt import ImportedMPT
from foundry_sdk.models.huggingface.source import find_source
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec
from foundry_sdk.models.mpt.model import MPT
from foundry_sdk.models.mpt.spec import MPTSpec
from foundry_sdk.models.readers import (
    Reader,
    TransformersEncoderDecoder,
    TransformersReader,
    reader_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONFIG: Final = "config.json"
_GENERATION: Final = "generation_config.json"
_ADAPTERS: Final = "adapter_config.json"
_ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_TOKENIZER_FILES: Final = ("tokenizer*", "*.model", "vocab.*")


@attrs.frozen(kw_only=True, eq=False)
class Opened:
    """A model with its tokenizer; attributes as those of ``Writer``."""

    reader: Reader
    tokenizer: "PreTrainedTokenizerBase"
    max_length: int | None
    ends: frozenset[int]
    encoder_decoder: bool


def holds_files(folder: Path) -> bool:
    """Return whether ``folder`` has a model, or adapters, as transformers or peft write them."""
    return any((folder / name).is_file() for name in (_CONFIG, _ADAPTERS))


def is_hub_name(name: str) -> bool:
    """Return whether ``name`` may be one of the hub: ``name`` or ``owner/name``."""
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1 and name[-1:] not in "/"


def open_from_hub(name: str, device: torch.device, dtype: torch.dtype) -> Opened:
    """Open a model, or adapters, of the hub; files that are not in its cache are downloaded.

    Raises:
        CheckpointError: the hub does not have it or cannot be reached, or it cannot be loaded.
    """
    try:
        folder = find_source(HFCausalLMSpec(pretrained_model_name_or_path=name)).folder
    except SpecError as error:
        raise CheckpointError(
            f"{name}: no such file or folder, and no model of that name could be read from the "
            f"hub: {_hub_problem(error)}"
        ) from error
    return open_files(folder, name, device, dtype)


def open_files(folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> Opened:
    """Open a folder with ``config.json``, or with ``adapter_config.json``.

    Args:
        folder: a local one.
        name: where its tokenizer is: the folder, or its name on the hub.
        device: to load it to.
        dtype: of weights and computation.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    base, places = folder, [name]
    alone = not (folder / _CONFIG).is_file()
    if alone:
        adapters = _json(folder / _ADAPTERS)
        if not (folder / _ADAPTER_WEIGHTS).is_file():
            raise CheckpointError(f"{name}: there is no {_ADAPTER_WEIGHTS}; others are not read")
        base = _base_model(folder, adapters)
        on_hub = str(adapters["base_model_name_or_path"])
        places.append(str(base) if Path(on_hub).expanduser().is_dir() else on_hub)
    config = _json(base / _CONFIG)
    try:
        tokenizer = _tokenizer(places)
        reader, length = _reader(base, config, device, dtype, adapters=folder if alone else None)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"{name}: it cannot be loaded: {error}") from error
    return Opened(
        reader=reader,
        tokenizer=tokenizer,
        max_length=length,
        ends=ends_of(tokenizer, [config.get("eos_token_id"), named_ends(base)]),
        encoder_decoder=isinstance(reader, TransformersEncoderDecoder),
    )


def named_ends(folder: Path) -> object:
    """Return ``eos_token_id`` of a folder's ``generation_config.json``; None without one."""
    file = folder / _GENERATION
    return _json(file).get("eos_token_id") if file.is_file() else None


def ends_of(tokenizer: "PreTrainedTokenizerBase", named: Iterable[object]) -> frozenset[int]:
    """Return the tokens that end a text.

    Args:
        tokenizer: its end-of-sequence token is one.
        named: values of ``eos_token_id``, a number or several. Only such count that are special
            to the tokenizer: a config that was made for another one names ordinary tokens.
    """
    special = set(tokenizer.all_special_ids)
    special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = {number for each in named for number in (each if isinstance(each, list) else [each])}
    return frozenset({number for number in special if number in found} | _own_end(tokenizer))


def _own_end(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    return set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}


def positions_of(config: Any) -> int | None:  # noqa: ANN401 - of any architecture
    """Return the longest sequence that a config of a decoder names."""
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", getattr(text, "max_seq_len", None))
    return None if length is None else int(length)


def cast_parameters(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give parameters another dtype, in place; buffers, such as rotary frequencies, keep theirs."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def _hub_problem(error: Exception) -> str:
    """Return why ``find_source`` found nothing."""
    if not hub.can_be_reached():
        return "it cannot be reached from here, and its cache does not have the name"
    return _first_line(error.__cause__ or error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(values).__name__}")
    return values


def _base_model(folder: Path, adapters: Mapping[str, Any]) -> Path:
    """Return the folder of the model that adapters belong to."""
    name = adapters.get("base_model_name_or_path")
    if not isinstance(name, str):
        raise CheckpointError(
            f"{folder / _ADAPTERS}: base_model_name_or_path: expected the folder or name of the "
            f"model that the adapters belong to, got {name!r}"
        )
    named = HFCausalLMSpec(pretrained_model_name_or_path=name, revision=adapters.get("revision"))
    try:
        return find_source(named).folder
    except SpecError as error:
        raise CheckpointError(
            f"{folder}: the model of the adapters is not there: {error}"
        ) from error


def _tokenizer(places: Iterable[str]) -> "PreTrainedTokenizerBase":
    """Load the tokenizer from the first place that has one."""
    from transformers import AutoTokenizer

    problems = []
    for place in places:
        folder = Path(place)
        is_folder = folder.is_dir()
        if is_folder and not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
            problems.append(f"there is no tokenizer in {place}")
            continue
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                place,
                local_files_only=is_folder or not hub.can_be_reached(),
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            problems.append(f"the tokenizer of {place}: {_first_line(error)}")
            continue
        return tokenizer
    raise CheckpointError("; ".join(problems) + "; save its tokenizer beside the weights")


def _reader(
    base: Path,
    config: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    *,
    adapters: Path | None,
) -> tuple[Reader, int | None]:
    own = _own_model(base, config, device) if adapters is None else None
    if own is not None:
        own.init_weights(0)  # reads the files
        cast_parameters(own, dtype)
        return reader_of(own.eval()), own.max_sequence_length()
    import transformers
    from transformers.utils import logging

    quiet: Callable[[], None] = logging.disable_progress_bar
    quiet()  # the bar would stand between the texts
    known: Any = transformers.AutoConfig.from_pretrained(
        base, local_files_only=True, trust_remote_code=False
    )
    seq2seq = bool(known.is_encoder_decoder)
    auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    model: Any = auto.from_pretrained(
        base, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    length = None if seq2seq else positions_of(model.config)
    if adapters is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapters)
    model = model.to(device).eval()
    return (TransformersEncoderDecoder if seq2seq else TransformersReader)(model), length


def _own_model(base: Path, config: Mapping[str, Any], device: torch.device) -> MPT | None:
    """Return our own model, without values, where ``config`` is of an MPT; else None."""
    if config.get("model_type") == "mpt":
        model = HFCausalLMSpec(pretrained_model_name_or_path=str(base)).build(device=str(device))
        return model if isinstance(model, MPT) else None
    if config.get("model_type") == "foundry_mpt":
        values = {"name": MPTSpec.kind, **config["mpt"]}
        spec = structured(values, ModelSpec, "mpt", base / _CONFIG)
        return ImportedMPT(spec, folder=base, device=str(device))
    return None
