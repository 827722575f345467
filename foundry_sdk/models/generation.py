"""Continues texts with a language model, token by token."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import attrs
import torch
from attrs import validators
from torch import Tensor

from foundry_sdk.batch import Batch
from foundry_sdk.models.huggingface.seq2seq import HFSeq2Seq
from foundry_sdk.models.language_model import LanguageModel
from foundry_sdk.models.mpt.model import MPT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foundry_sdk.models.mpt.cache import KeyValueCache


@attrs.frozen(kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 = always the most probable token.
        top_k: only among so many most probable tokens.
        top_p: only among the fewest most probable tokens that hold this much probability (Holtzman
            et al. 2020, nucleus sampling).
        seed: each row draws from its own generator, seeded by this and its place.
    """

    temperature: float = attrs.field(default=0.0, validator=validators.ge(0.0))
    top_k: int | None = attrs.field(default=None, validator=validators.optional(validators.ge(1)))
    top_p: float | None = attrs.field(
        default=None,
        validator=validators.optional(validators.and_(validators.gt(0.0), validators.le(1.0))),
    )
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError("top_k and top_p need a temperature above 0")


class Reader(Protocol):
    """Reads tokens and says what may come next."""

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Read prompts int64 (B, T), padded on the right; return logits (B, V) after each."""

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Read one token a row, int64 (B,), at its position; return logits (B, V) after it."""


def generate(
    model: LanguageModel,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Return what ``model`` writes after each of ``prompts``, without the prompt.

    A row ends at the end-of-sequence token, after ``max_new_tokens``, or at the model's length.
    Ids that the tokenizer does not know are never chosen. Called on every rank or on none where
    the model is sharded.

    Raises:
        ValueError: a prompt leaves no room for a token, or a sampling option is out of range.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    ids = [encode(tokenizer, prompt) for prompt in prompts]
    if not ids:
        return []
    with torch.no_grad():
        rows: list[list[int]] = [[] for _ in ids]
        for tokens in _tokens(
            reader_of(model),
            ids,
            device=next(model.parameters()).device,
            max_new_tokens=max_new_tokens,
            max_length=model.max_sequence_length(),
            end=tokenizer.eos_token_id,
            known=len(tokenizer),
            sampling=sampling,
        ):
            for row, token in zip(rows, tokens, strict=True):
                if token is not None:
                    row.append(token)
    return [_continuation(tokenizer, *pair) for pair in zip(ids, rows, strict=True)]


def stream(
    reader: Reader,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    *,
    device: torch.device,
    max_new_tokens: int,
    max_length: int | None,
    sampling: Sampling,
) -> Iterator[str]:
    """Yield the continuation of one prompt piece by piece, whole characters only."""
    ids = encode(tokenizer, prompt)
    new: list[int] = []
    written = ""
    with torch.no_grad():
        for (token,) in _tokens(
            reader,
            [ids],
            device=device,
            max_new_tokens=max_new_tokens,
            max_length=max_length,
            end=tokenizer.eos_token_id,
            known=len(tokenizer),
            sampling=sampling,
        ):
            if token is not None:
                new.append(token)
            text = _continuation(tokenizer, ids, new)
            if not text.endswith("\ufffd"):  # else a character's other bytes are still to come
                yield text[len(written) :]
                written = text
    yield _continuation(tokenizer, ids, new)[len(written) :]


def encode(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Return a prompt's ids; an empty one begins with the token that begins a document."""
    ids: list[int] = list(tokenizer(prompt)["input_ids"])
    if ids:
        return ids
    first = tokenizer.bos_token_id
    return [tokenizer.eos_token_id if first is None else first]


def reader_of(model: LanguageModel) -> Reader:
    """Return a reader that keeps keys and values where the model can, else rereads."""
    from torch.distributed.fsdp import FSDPModule

    sharded = any(isinstance(block, FSDPModule) for block in model.blocks())
    if isinstance(model, HFSeq2Seq):
        return _EncoderDecoderReader(model)
    if isinstance(model, MPT) and not sharded:
        return _CachedReader(model)
    return _RereadingReader(model)


def _continuation(tokenizer: "PreTrainedTokenizerBase", prompt: list[int], new: list[int]) -> str:
    """Return the text of ``new`` as it reads after ``prompt`` (tokens may join across it)."""
    before = str(tokenizer.decode(prompt, skip_special_tokens=True))
    whole = str(tokenizer.decode(prompt + new, skip_special_tokens=True))
    if whole.startswith(before):
        return whole[len(before) :]
    return str(tokenizer.decode(new, skip_special_tokens=True))


def _tokens(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    *,
    device: torch.device,
    max_new_tokens: int,
    max_length: int | None,
    end: int | None,
    known: int,
    sampling: Sampling,
) -> Iterator[list[int | None]]:
    """Yield each step's token of every row; None for rows that have ended."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = max(len(prompt) for prompt in prompts)
    if max_length is not None and longest >= max_length:
        raise ValueError(f"a prompt has {longest} tokens, the model takes {max_length} in all")
    if isinstance(reader, _CachedReader):
        room = longest + max_new_tokens
        reader.make_room(len(prompts), room if max_length is None else min(room, max_length))
    padded = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = torch.tensor(prompt)
    generators = [torch.Generator().manual_seed(sampling.seed + row) for row in range(len(prompts))]
    running = [True] * len(prompts)
    logits = reader.start(padded, lengths)
    for count in range(max_new_tokens):
        chosen = choose(logits[:, :known], sampling, generators)
        running = [on and token != end for on, token in zip(running, chosen, strict=True)]
        yield [token if on else None for on, token in zip(running, chosen, strict=True)]
        at = lengths + count
        if max_length is not None:
            running = [
                on and length + count + 1 < max_length
                for on, length in zip(running, map(len, prompts), strict=True)
            ]
        if count + 1 == max_new_tokens or not any(running):
            return
        if max_length is not None:  # rows that have ended stay within the model's length
            at = at.clamp(max=max_length - 1)
        logits = reader.step(torch.tensor(chosen, device=device), at)


def choose(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """Return one token a row of logits (B, V)."""
    scores = logits.detach().float().cpu()
    if sampling.temperature == 0:
        return [int(token) for token in scores.argmax(-1)]
    scores = scores / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p is not None:
        ordered, order = scores.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(
            -1, order, before >= sampling.top_p
        )
        scores = scores.masked_fill(dropped, -torch.inf)
    return [
        int(torch.multinomial(row, 1, generator=generator))
        for row, generator in zip(scores.softmax(-1), generators, strict=True)
    ]


class _CachedReader:
    """Reads each token once, keeping keys and values."""

    def __init__(self, model: MPT) -> None:
        self._model = model
        self._cache: KeyValueCache | None = None

    def make_room(self, sequences: int, room: int) -> None:
        self._cache = self._model.new_cache(sequences, room)

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        sequences, length = input_ids.shape
        positions = torch.arange(length, device=input_ids.device).expand(sequences, -1)
        hidden_states = self._decode(input_ids, positions)
        rows = torch.arange(sequences, device=input_ids.device)
        return self._model.logits(hidden_states[rows, lengths - 1])

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self._model.logits(self._decode(tokens[:, None], positions[:, None])[:, 0])

    def _decode(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        if self._cache is None:
            raise ValueError("make_room comes first")
        return self._model.decode(input_ids, positions, self._cache)


class _RereadingReader:
    """Reads everything again for each token: any model, sharded or not."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._ids = torch.empty(0)
        self._lengths = torch.empty(0)

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        self._ids, self._lengths = input_ids, lengths
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        mask = positions < lengths[:, None]
        batch = Batch(input_ids=input_ids, labels=input_ids, attention_mask=mask)
        hidden_states = self._model(batch)
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        return self._model.logits(hidden_states[rows, lengths - 1])

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        ids = self._ids
        if int(positions.max()) >= ids.shape[1]:
            ids = torch.cat([ids, torch.zeros_like(ids[:, :1])], dim=1)
        ids = ids.clone()
        ids[torch.arange(ids.shape[0], device=ids.device), positions] = tokens
        return self.start(ids, positions + 1)


class _EncoderDecoderReader:
    """Reads prompts with the encoder; the decoder rereads what it has written for each token."""

    def __init__(self, model: HFSeq2Seq) -> None:
        self._model = model
        self._ids = torch.empty(0)
        self._mask = torch.empty(0)
        self._written = torch.empty(0)

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        self._ids, self._mask = input_ids, positions < lengths[:, None]
        first = self._model.first_token()
        self._written = torch.full_like(input_ids[:, :1], first)
        return self._read()

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
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
