"""Examples → turns of token ids: what is read, and what is learned after it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from foundry_sdk.data.contract import Preprocess
from foundry_sdk.data.finetuning.chatml import CHATML, chatml
from foundry_sdk.data.finetuning.examples import Conversation, PromptExample, checked
from foundry_sdk.data.finetuning.texts import Ids, TextEncoder
from foundry_sdk.errors import DataError, FoundryError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = tuple[Ids, Ids]
"""Context and target."""

DATE: Final = "26 Jul 2024"
"""What chat templates that print a date are given: the same every day, so that a run that goes on
tomorrow reads the same tokens."""


class ExampleEncoder:
    """Tokenizes examples, many at a time.

    Prompt and response are tokenized apart, with nothing put between them. A chat becomes a turn
    for each of the assistant's messages: the text that the chat template makes of what came
    before, and the text of the message.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", *, pretokenized: str | None = None
    ) -> None:
        """Take the tokenizer.

        Args:
            tokenizer: of the run.
            pretokenized: rows may have ``turns``, or ``input_ids`` and ``labels``; bytes are
                numbers of this numpy type. None = rows are examples.
        """
        self._tokenizer = tokenizer
        self._pretokenized = pretokenized
        self._vocabulary = len(tokenizer)
        self._texts = TextEncoder(tokenizer)
        self.chat_template: str | None = None
        """What made chats text so far: ``tokenizer`` or ``chatml``; None = there were none."""

    def encode(
        self,
        rows: Sequence[Mapping[str, Any]],
        preprocess: Preprocess | None,
        places: Sequence[str],
    ) -> list[list[Turn]]:
        """Return each row's turns.

        Args:
            rows: of a dataset.
            preprocess: makes an example of a row; None = rows are examples.
            places: what errors call each row.

        Raises:
            DataError: a row is no example; the message has its place and content.
        """
        result: list[list[Turn]] = [[] for _ in rows]
        prompts: dict[int, PromptExample] = {}
        chats: dict[int, list[tuple[str, str]]] = {}
        for number, row in enumerate(rows):
            where = places[number]
            if self._pretokenized is not None and ("turns" in row or "input_ids" in row):
                result[number] = self._own_ids(row, where)
                continue
            example = checked(example_of(row, preprocess, where), where)
            if isinstance(example, PromptExample):
                prompts[number] = example
            else:
                chats[number] = self._slices(example, where)
        for number, turn in zip(prompts, self._encode_prompts([*prompts.values()]), strict=True):
            result[number] = [turn]
        if chats:
            self.chat_template = "tokenizer" if self._tokenizer.chat_template else CHATML
        turns = self._encode_texts([text for chat in chats.values() for text in chat])
        for number, chat in chats.items():
            result[number], turns = turns[: len(chat)], turns[len(chat) :]
        return result

    def _encode_prompts(self, examples: Sequence[PromptExample]) -> list[Turn]:
        if not examples:
            return []
        prompts = self._texts([each.prompt for each in examples])
        responses = self._texts([each.response for each in examples], target=True)
        bos = self._tokenizer.bos_token_id
        turns = []
        for prompt, response in zip(prompts, responses, strict=True):
            twice = bos is not None and prompt[:1].tolist() == [bos] == response[:1].tolist()
            turns.append((prompt, response[1:] if twice else response))
        return turns

    def _encode_texts(self, pairs: Sequence[tuple[str, str]]) -> list[Turn]:
        if not pairs:
            return []
        texts = [text for pair in pairs for text in pair]
        ids = self._texts(texts, special_tokens=False)
        return list(zip(ids[::2], ids[1::2], strict=True))

    def _slices(self, chat: Conversation, where: str) -> list[tuple[str, str]]:
        """Return the text before and of each of the assistant's messages."""
        pairs, done = [], ""
        for number, message in enumerate(chat.messages):
            if message["role"] != "assistant":
                continue
            before = self._render(chat.messages[:number], where, generation=True)
            whole = self._render(chat.messages[: number + 1], where, generation=False)
            if not before.startswith(done) or not whole.startswith(before):
                raise DataError(
                    f"{where}: the tokenizer's chat template renders the first {number} messages "
                    f"otherwise when message {number} follows, so what is learned cannot be told "
                    "from what is read; use a template whose text only grows"
                )
            pairs.append((before[len(done) :], whole[len(before) :]))
            done = whole
        return pairs

    def _render(
        self, messages: Sequence[Mapping[str, Any]], where: str, *, generation: bool
    ) -> str:
        if not self._tokenizer.chat_template:
            return chatml(messages, where, generation=generation)
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation,
                date_string=DATE,
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{where}: the tokenizer's chat template refuses the conversation ({error}): "
                f"{list(messages)!r:.300}"
            ) from error
        return str(text)

    def _own_ids(self, row: Mapping[str, Any], where: str) -> list[Turn]:
        """Return the turns of a row that was tokenized when it was written."""
        if "turns" not in row and "labels" not in row:
            raise DataError(f"{where}: has input_ids but no labels")
        turns = row.get("turns", [row])
        return [
            (self._numbers(turn["input_ids"], where), self._numbers(turn["labels"], where))
            for turn in turns
        ]

    def _numbers(self, value: Any, where: str) -> Ids:  # noqa: ANN401
        if isinstance(value, bytes):
            value = np.frombuffer(value, self._pretokenized)
        ids = np.asarray(value)
        if ids.size == 0:
            return np.empty(0, np.int32)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise DataError(f"{where}: ids must be a row of integers, got {ids.dtype}{ids.shape}")
        if ids.min() < 0 or ids.max() >= self._vocabulary:
            raise DataError(
                f"{where}: an id from {ids.min()} to {ids.max()} is not in the tokenizer's "
                f"vocabulary of {self._vocabulary}; the data is of another tokenizer"
            )
        return ids.astype(np.int32)


def example_of(row: Mapping[str, Any], preprocess: Preprocess | None, where: str) -> object:
    """Return what the preprocessor makes of a row, or the row.

    Raises:
        DataError: the preprocessor failed; names the row and its content.
    """
    if preprocess is None:
        return row
    try:
        return preprocess(row)
    except Exception as error:
        if isinstance(error, FoundryError):
            raise DataError(f"{where}: {error}") from error
        what = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{where}: the preprocessor failed ({what}) on the row {row!r:.300}"
        ) from error
