"""Reads tokens with a language model and says what may come next, with a cache where it can."""

import inspect
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from foundry_sdk.batch import Batch
from foundry_sdk.models.huggingface.seq2seq import HFSeq2Seq
from foundry_sdk.models.language_model import LanguageModel
from foundry_sdk.models.mpt.model import MPT

if TYPE_CHECKING:
    from foundry_sdk.models.mpt.cache import KeyValueCache


class Reader(Protocol):
    """Reads tokens and says what may come next."""

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Read prompts int64 (B, T), padded on the right; return logits (B, V) after each."""

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Read one token a row, int64 (B,), at its position; return logits (B, V) after it."""


def reader_of(model: LanguageModel) -> Reader:
    """Return a reader of batches that keeps keys and values where the model can, else rereads.

    It works inside a run too, where blocks may be sharded or compiled.
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = any(isinstance(block, FSDPModule) for block in model.blocks())
    if isinstance(model, HFSeq2Seq):
        return RereadingEncoderDecoder(model)
    if isinstance(model, MPT) and not sharded:
        return CachedReader(model)
    return RereadingReader(model)


class CachedReader:
    """Reads each token once, keeping keys and values."""

    def __init__(self, model: MPT) -> None:
        self._model = model
        self._cache: KeyValueCache | None = None

    def make_room(self, sequences: int, room: int) -> None:
        """Make a cache for so many rows of so many tokens; comes before ``start``."""
        self._cache = self._model.new_cache(sequences, room)

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Read prompts int64 (B, T), padded on the right; return logits (B, V) after each."""
        sequences, length = input_ids.shape
        positions = torch.arange(length, device=input_ids.device).expand(sequences, -1)
        hidden_states = self._decode(input_ids, positions)
        rows = torch.arange(sequences, device=input_ids.device)
        return self._model.logits(hidden_states[rows, lengths - 1])

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Read one token a row, int64 (B,), at its position; return logits (B, V) after it."""
        return self._model.logits(self._decode(tokens[:, None], positions[:, None])[:, 0])

    def _decode(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        if self._cache is None:
            raise ValueError("make_room comes first")
        return self._model.decode(input_ids, positions, self._cache)


class RereadingReader:
    """Reads everything again for each token: any model, sharded or not."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._ids = torch.empty(0)
        self._lengths = torch.empty(0)

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Read prompts int64 (B, T), padded on the right; return logits (B, V) after each."""
        self._ids, self._lengths = input_ids, lengths
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        mask = positions < lengths[:, None]
        batch = Batch(input_ids=input_ids, labels=input_ids, attention_mask=mask)
        hidden_states = self._model(batch)
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        return self._model.logits(hidden_states[rows, lengths - 1])

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Read one token a row, int64 (B,), at its position; return logits (B, V) after it."""
        ids = self._ids
        if int(positions.max()) >= ids.shape[1]:
            ids = torch.cat([ids, torch.zeros_like(ids[:, :1])], dim=1)
        ids = ids.clone()
        ids[torch.arange(ids.shape[0], device=ids.device), positions] = tokens
        return self.start(ids, positions + 1)


class RereadingEncoderDecoder:
    """Reads prompts and all that the decoder has written again for each token, sharded or not."""

    def __init__(self, model: HFSeq2Seq) -> None:
        self._model = model
        self._ids = torch.empty(0)
        self._mask = torch.empty(0)
        self._written = torch.empty(0)

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Read prompts int64 (B, T), padded on the right; return logits (B, V) of the decoder."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        self._ids, self._mask = input_ids, positions < lengths[:, None]
        first = self._model.first_token()
        self._written = torch.full_like(input_ids[:, :1], first)
        return self._read()

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Give the decoder one token a row, int64 (B,); return logits (B, V) after it."""
        del positions  # all rows write from the beginning
        self._written = torch.cat([self._written, tokens[:, None]], dim=1)
        return self._read()

    def _read(self) -> Tensor:
        batch = Batch(
            input_ids=self._ids,
            labels=self._written,
            attention_mask=self._mask,
            decoder_input_ids=self._written,
        )
        hidden_states = self._model(batch)
        return self._model.logits(hidden_states[:, -1])


class TransformersReader:
    """One row at a time through a decoder of transformers, with that model's own cache.

    Models that keep no keys and values (Mamba …) are given everything again for each token.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - any architecture, or peft around it
        self._model = model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        takes = inspect.signature(inner.forward).parameters
        self._caches = "past_key_values" in takes
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._cache: Any = None
        self._ids = torch.empty(0)

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Read a prompt int64 (1, T); return logits (1, V) after it.

        Raises:
            ValueError: there are several.
        """
        if input_ids.shape[0] != 1:
            raise ValueError("one prompt at a time")
        del lengths
        self._cache = None
        self._ids = input_ids[:, :0]
        return self._read(input_ids)

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Read one token, int64 (1,); return logits (1, V) after it."""
        del positions
        return self._read(tokens[:, None])

    def _read(self, input_ids: Tensor) -> Tensor:
        if self._caches:
            output = self._model(
                input_ids=input_ids, past_key_values=self._cache, use_cache=True, **self._last
            )
            self._cache = output.past_key_values
        else:
            self._ids = torch.cat([self._ids, input_ids], dim=1)
            output = self._model(input_ids=self._ids, use_cache=False, **self._last)
        logits: Tensor = output.logits[:, -1]
        return logits


class TransformersEncoderDecoder:
    """Prompts through the encoder of transformers once, then a token at a time in its decoder."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - any architecture
        self._model = model
        self._encoded: Any = None
        self._mask = torch.empty(0)
        self._cache: Any = None

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Read prompts int64 (B, T), padded on the right; return logits (B, V) of the decoder."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        self._mask = positions < lengths[:, None]
        self._encoded = self._model.get_encoder()(input_ids=input_ids, attention_mask=self._mask)
        self._cache = None
        first = int(self._model.config.decoder_start_token_id)
        return self._read(torch.full_like(input_ids[:, :1], first))

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Give the decoder one token a row, int64 (B,); return logits (B, V) after it."""
        del positions  # all rows write from the beginning
        return self._read(tokens[:, None])

    def _read(self, tokens: Tensor) -> Tensor:
        output = self._model(
            encoder_outputs=self._encoded,
            attention_mask=self._mask,
            decoder_input_ids=tokens,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits
