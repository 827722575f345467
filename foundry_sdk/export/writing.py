"""Opens any trained model to write with: a run, a checkpoint, an export, or a model of the hub."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from foundry_sdk.errors import CheckpointError, DeviceMemoryError, SpecError
from foundry_sdk.export.exporter import DTYPES, Precision
from foundry_sdk.export.opened import (
    cast_parameters,
    ends_of,
    holds_files,
    is_hub_name,
    named_ends,
    open_files,
    open_from_hub,
    positions_of,
)
from foundry_sdk.export.trained import load_trained
from foundry_sdk.models.generation import Ended, Sampling, stream
from foundry_sdk.models.huggingface.model import HFModel
from foundry_sdk.models.huggingface.source import find_source
from foundry_sdk.models.readers import (
    Reader,
    TransformersEncoderDecoder,
    TransformersReader,
    reader_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foundry_sdk.export.opened import Opened


@attrs.frozen(kw_only=True, eq=False)
class Writer:
    """A model with its tokenizer, ready to continue texts.

    Attributes:
        reader: the model.
        tokenizer: of the model.
        device: where it is.
        max_length: tokens that it can read and write in all; None = no limit known.
        ends: tokens that end a text: the tokenizer's, and those that the model's files name.
        encoder_decoder: prompts are read by an encoder, so nothing is continued: it is answered.
    """

    reader: Reader
    tokenizer: "PreTrainedTokenizerBase"
    device: torch.device
    max_length: int | None
    ends: frozenset[int]
    encoder_decoder: bool = False

    def write(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: str | None = None,
    ) -> Generator[str, None, Ended]:
        """Yield the continuation of ``prompt`` piece by piece; return why it ended.

        Args:
            prompt: a text, or token ids.
            max_new_tokens: the most tokens to write.
            temperature: see ``Sampling``, as the next three.
            top_k: only among so many tokens.
            top_p: only among so much probability.
            seed: of the draw.
            stop: a text that ends the continuation, and is no part of it.

        Raises:
            ValueError: the prompt leaves no room, or an option is out of range.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return self._write(prompt, max_new_tokens, sampling, stop)

    def _write(
        self, prompt: str | Sequence[int], max_new_tokens: int, sampling: Sampling, stop: str | None
    ) -> Generator[str, None, Ended]:
        try:
            return (
                yield from stream(
                    self.reader,
                    self.tokenizer,
                    prompt,
                    device=self.device,
                    max_new_tokens=max_new_tokens,
                    max_length=self.max_length,
                    sampling=sampling,
                    ends=self.ends,
                    stop=stop,
                )
            )
        except torch.OutOfMemoryError as error:
            raise _no_memory(self.device) from error


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise SpecError(f"device: expected cpu, cuda or cuda:1 …, got {name!r}") from error
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise SpecError(f"device: {name!r} is not here: there are {count} GPUs")
    return chosen


def _no_memory(device: torch.device) -> DeviceMemoryError:
    return DeviceMemoryError(
        f"{device} has no memory left for the model and its text; bf16 weights (--precision bf16) "
        "take half of fp32's, a shorter text takes less"
    )


def open_writer(
    path: str | Path, *, device: str | None = None, precision: Precision = "fp32"
) -> Writer:
    """Open a run's folder, a checkpoint's, an exported model's, or a model of the hub.

    Args:
        path: a folder, or a name on the hub. A folder with a ``config.json``, or with an
            ``adapter_config.json``, is a model as transformers or peft write it.
        device: None = a GPU if there is one.
        precision: of weights and computation.

    Raises:
        CheckpointError: there is no model, or nothing says which tokenizer it has.
        DeviceMemoryError: the device has no room for it.
        SpecError: there is no such device.
    """
    chosen = _device(device)
    try:
        return _open(path, chosen, DTYPES[precision])
    except torch.OutOfMemoryError as error:
        raise _no_memory(chosen) from error


def _open(path: str | Path, chosen: torch.device, dtype: torch.dtype) -> Writer:
    folder = Path(path).expanduser()
    opened: Opened | None = None
    if holds_files(folder):
        opened = open_files(folder, str(folder), chosen, dtype)
    elif not folder.exists() and is_hub_name(str(path)):
        opened = open_from_hub(str(path), chosen, dtype)
    if opened is not None:
        return Writer(
            reader=opened.reader,
            tokenizer=opened.tokenizer,
            device=chosen,
            max_length=opened.max_length,
            ends=opened.ends,
            encoder_decoder=opened.encoder_decoder,
        )
    return _open_run(folder, chosen, dtype)


def _open_run(path: Path, device: torch.device, dtype: torch.dtype) -> Writer:
    trained = load_trained(path)
    if trained.tokenizer is None:
        raise CheckpointError(
            f"{path}: there is no spec.yaml beside the checkpoint, so its tokenizer is not known; "
            "name the run's folder"
        )
    model = trained.model.to(device)
    cast_parameters(model, dtype)
    reader: Reader = reader_of(model)
    length = model.max_sequence_length()
    named: list[Any] = []
    if isinstance(model, HFModel):
        if model.encoder_decoder:
            reader = TransformersEncoderDecoder(model.model)
        else:
            reader = TransformersReader(model.model)
            length = positions_of(model.model.config)
        named = [model.model.config.eos_token_id, named_ends(find_source(model.spec).folder)]
    return Writer(
        reader=reader,
        tokenizer=trained.tokenizer,
        device=device,
        max_length=length,
        ends=ends_of(trained.tokenizer, named),
        encoder_decoder=model.encoder_decoder,
    )
