"""Continues texts with a language model, token by token."""

from collections.abc import Collection, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal

import attrs
import torch
from attrs import validators
from torch import Tensor

from foundry_sdk.models.language_model import LanguageModel
from foundry_sdk.models.readers import CachedReader, Reader, reader_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ended = Literal["end", "max_new_tokens", "length"]
"""A token or text that ends; as many tokens as were asked for; as many as the model takes."""
_CONTEXT: Final = 32
"""Tokens of a prompt that may change how the next ones read."""


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
            ends={tokenizer.eos_token_id},
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
    prompt: str | Sequence[int],
    *,
    device: torch.device,
    max_new_tokens: int,
    max_length: int | None,
    sampling: Sampling,
    ends: Collection[int],
    stop: str | None = None,
) -> Generator[str, None, Ended]:
    """Yield the continuation of one prompt piece by piece, whole characters only.

    Args:
        reader: of the model.
        tokenizer: of the model.
        prompt: a text, or token ids.
        device: where the model is.
        max_new_tokens: the most tokens to write.
        max_length: tokens that the model takes in all; None = no limit known.
        sampling: how a token is chosen.
        ends: tokens that end the text; they are no part of it.
        stop: a text that ends the text, and is no part of it.

    Returns:
        Why it ended.

    Raises:
        ValueError: the prompt leaves no room for a token.
    """
    ids = encode(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    decoder = _Decoder(tokenizer, ids)
    count = 0
    text = written = ""
    ended: Ended = "max_new_tokens"
    with torch.no_grad():
        for (token,) in _tokens(
            reader,
            [ids],
            device=device,
            max_new_tokens=max_new_tokens,
            max_length=max_length,
            ends=ends,
            known=len(tokenizer),
            sampling=sampling,
        ):
            if token is None:
                ended = "end"
                break
            count += 1
            text = decoder.add(token)
            if stop is not None and (found := text.find(stop, len(written))) >= 0:
                text, ended = text[:found], "end"
                break
            ready = text[: len(text) - _begun(text, stop)]
            # a character whose other bytes are still to come ends in a replacement
            if len(ready) > len(written) and not ready.endswith("\ufffd"):
                yield ready[len(written) :]
                written = ready
    if len(text) > len(written):
        yield text[len(written) :]
    return "length" if ended != "end" and count < max_new_tokens else ended


def encode(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Return a prompt's ids; an empty one begins with the token that begins a document."""
    ids: list[int] = list(tokenizer(prompt)["input_ids"])
    if ids:
        return ids
    first = tokenizer.bos_token_id
    return [tokenizer.eos_token_id if first is None else first]


class _Decoder:
    """Turns tokens that come one by one into text, without decoding all of them each time."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._before = list(prompt)
        self._new: list[int] = []
        self._done = ""

    def add(self, token: int) -> str:
        """Return the text of all tokens so far."""
        self._new.append(token)
        text = _continuation(self._tokenizer, self._before, self._new)
        if len(self._new) >= _CONTEXT and not text.endswith("\ufffd"):
            self._done, text = self._done + text, ""
            self._before, self._new = self._new, []
        return self._done + text


def _begun(text: str, stop: str | None) -> int:
    """Return how many characters at the end of ``text`` may be the beginning of ``stop``."""
    if stop is None:
        return 0
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _continuation(tokenizer: "PreTrainedTokenizerBase", prompt: list[int], new: list[int]) -> str:
    """Return the text of ``new`` as it reads after ``prompt`` (tokens may join across it)."""
    prompt = prompt[-_CONTEXT:]
    before = _decode(tokenizer, prompt)
    whole = _decode(tokenizer, prompt + new)
    if whole.startswith(before):
        return whole[len(before) :]
    return _decode(tokenizer, new)


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    # cleaning up would take blanks away, also such as were written already
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _tokens(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    *,
    device: torch.device,
    max_new_tokens: int,
    max_length: int | None,
    ends: Collection[int | None],
    known: int,
    sampling: Sampling,
) -> Iterator[list[int | None]]:
    """Yield each step's token of every row; None for rows that have ended."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = max(len(prompt) for prompt in prompts)
    if max_length is not None and longest >= max_length:
        raise ValueError(f"a prompt has {longest} tokens, the model takes {max_length} in all")
    if isinstance(reader, CachedReader):
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
        running = [on and token not in ends for on, token in zip(running, chosen, strict=True)]
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
