"""Opens any trained model to write with: a run, a checkpoint, or an exported folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor

from foundry_sdk.errors import CheckpointError, SpecError
from foundry_sdk.export.trained import load_trained
from foundry_sdk.models.generation import Reader, Sampling, reader_of, stream
from foundry_sdk.models.huggingface.causal_lm import HFCausalLM
from foundry_sdk.models.huggingface.source import find_source
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec, HFSeq2SeqSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONFIG: Final = "config.json"
_ADAPTERS: Final = "adapter_config.json"


@attrs.frozen(kw_only=True, eq=False)
class Writer:
    """A model with its tokenizer, ready to continue texts.

    Attributes:
        reader: the model.
        tokenizer: of the model.
        device: where it is.
        max_length: tokens that it can read and write in all; None = no limit known.
    """

    reader: Reader
    tokenizer: "PreTrainedTokenizerBase"
    device: torch.device
    max_length: int | None

    def write(
        self,
        prompt: str,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the continuation of ``prompt`` piece by piece.

        Raises:
            ValueError: the prompt leaves no room, or an option is out of range.
        """
        return stream(
            self.reader,
            self.tokenizer,
            prompt,
            device=self.device,
            max_new_tokens=max_new_tokens,
            max_length=self.max_length,
            sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        )


def open_writer(path: str | Path, *, device: str | None = None) -> Writer:
    """Open a run's folder, a checkpoint's, or an exported model's.

    Args:
        path: a folder; one with a ``config.json`` is an exported model.
        device: None = a GPU if there is one.

    Raises:
        CheckpointError: there is no model, or nothing says which tokenizer it has.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if any((Path(path) / name).is_file() for name in (_CONFIG, _ADAPTERS)):
        return _open_exported(Path(path), chosen)
    trained = load_trained(path)
    if trained.tokenizer is None:
        raise CheckpointError(
            f"{path}: there is no spec.yaml beside the checkpoint, so its tokenizer is not known; "
            "name the run's folder"
        )
    model = trained.model.to(chosen)
    reader: Reader = reader_of(model)
    if isinstance(model, HFCausalLM):
        reader = _TransformersReader(model.model)
    return Writer(
        reader=reader,
        tokenizer=trained.tokenizer,
        device=chosen,
        max_length=trained.model.max_sequence_length(),
    )


def _open_exported(folder: Path, device: torch.device) -> Writer:
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    quiet: Callable[[], None] = logging.disable_progress_bar
    quiet()  # the bar would stand between the texts
    base = folder
    if not (folder / _CONFIG).is_file():
        adapters = json.loads((folder / _ADAPTERS).read_text(encoding="utf-8"))
        base = _base_model(folder, adapters)
    try:
        config: Any = AutoConfig.from_pretrained(base, local_files_only=True)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        if config.is_encoder_decoder:
            reader, length = _encoder_decoder(base, device), None
        else:
            reader, length = _decoder(base, None if base is folder else folder, device)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from error
    return Writer(reader=reader, tokenizer=tokenizer, device=device, max_length=length)


def _base_model(folder: Path, adapters: dict[str, Any]) -> Path:
    """Return the folder of the model that adapters belong to."""
    named = HFCausalLMSpec(
        pretrained_model_name_or_path=adapters["base_model_name_or_path"],
        revision=adapters.get("revision"),
    )
    try:
        return find_source(named).folder
    except SpecError as error:
        raise CheckpointError(
            f"{folder}: the model of the adapters is not there: {error}"
        ) from error


def _decoder(base: Path, adapters: Path | None, device: torch.device) -> tuple[Reader, int | None]:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    config = model.config
    length = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    if adapters is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapters)
    return _TransformersReader(model.to(device).eval()), length


def _encoder_decoder(folder: Path, device: torch.device) -> Reader:
    spec = HFSeq2SeqSpec(pretrained_model_name_or_path=str(folder))
    model = spec.build(device=str(device))
    model.init_weights(0)
    return reader_of(model.eval())


class _TransformersReader:
    """One row at a time through a transformers model, with its own cache."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - any architecture
        self._model = model
        self._cache: Any = None

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        if input_ids.shape[0] != 1:
            raise ValueError("one prompt at a time")
        del lengths
        self._cache = None
        return self._read(input_ids)

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        del positions
        return self._read(tokens[:, None])

    def _read(self, input_ids: Tensor) -> Tensor:
        output = self._model(input_ids=input_ids, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits
