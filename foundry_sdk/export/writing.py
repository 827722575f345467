"""Opens any trained model to write with: a run, a checkpoint, or an exported folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from foundry_sdk.errors import CheckpointError
from foundry_sdk.export.trained import load_trained
from foundry_sdk.models.generation import Reader, Sampling, reader_of, stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    if (Path(path) / "config.json").is_file():
        return _open_exported(Path(path), chosen)
    trained = load_trained(path)
    if trained.tokenizer is None:
        raise CheckpointError(
            f"{path}: there is no spec.yaml beside the checkpoint, so its tokenizer is not known; "
            "name the run's folder"
        )
    return Writer(
        reader=reader_of(trained.model.to(chosen)),
        tokenizer=trained.tokenizer,
        device=chosen,
        max_length=trained.model.max_sequence_length(),
    )


def _open_exported(folder: Path, device: torch.device) -> Writer:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    quiet: Callable[[], None] = logging.disable_progress_bar
    quiet()  # the bar would stand between the texts
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from error
    config = model.config
    length = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    return Writer(
        reader=_TransformersReader(model.to(device).eval()),
        tokenizer=tokenizer,
        device=device,
        max_length=length,
    )


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
