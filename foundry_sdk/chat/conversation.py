"""A conversation with a model: what was said, and how much of it the model is given."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import validators

from foundry_sdk.chat.template import ChatTemplate, Message, find_template
from foundry_sdk.data.finetuning.chatml import CHATML
from foundry_sdk.errors import SpecError
from foundry_sdk.export.exporter import Precision
from foundry_sdk.export.writing import Writer, open_writer
from foundry_sdk.models.generation import Ended, Sampling

_SHARE: Final = 4
"""One part in so many of the model's length is kept free for an answer, or what is asked for."""


@attrs.frozen
class Exchange:
    """One message of the user and the model's answer, as far as it came."""

    user: str
    assistant: str


@attrs.frozen(kw_only=True)
class Answering:
    """How answers are written.

    Attributes:
        max_new_tokens: the most tokens of one answer.
        sampling: how a token is chosen. Each answer of a conversation has the next seed, so that
            a question that is asked again may get another answer.
    """

    max_new_tokens: int = attrs.field(default=512, validator=validators.ge(1))
    sampling: Sampling = attrs.field(factory=Sampling)


class Chat:
    """A conversation with a model.

    Attributes:
        writer: the model.
        template: makes the model's text of the messages; None = each message is a prompt of its
            own, which is how an encoder-decoder without a template is asked.
        exchanges: what was said, the oldest first.
        left_out: how many of the oldest exchanges the last answer did not know, as there was no
            room for them.
        ended: why the last answer ended; None = it was broken off, or there is none.
    """

    def __init__(
        self,
        writer: Writer,
        template: ChatTemplate | None,
        *,
        system: str | None = None,
        answering: Answering | None = None,
    ) -> None:
        """Begin.

        Raises:
            SpecError: the template has no use for ``system``.
        """
        self.template = template
        self.exchanges: list[Exchange] = []
        self.left_out = 0
        self.ended: Ended | None = None
        self._answering = answering or Answering()
        self._asked = 0
        self._system: str | None = None
        self._stop: str | None = None
        if template is not None:
            ends, self._stop = template.end_of_turn()
            writer = attrs.evolve(writer, ends=writer.ends | ends)
        self.writer = writer
        self.system = system

    @property
    def system(self) -> str | None:
        """The system message, which comes before all others and is never left out."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if text is not None:
            if self.template is None:
                raise SpecError(
                    f"system message {text!r}: without a chat template each message is a prompt of "
                    "its own; leave it out, or name a template"
                )
            self.template.check_system(text)
        self._system = text
        self.left_out = 0

    def messages(self, *, since: int = 0) -> list[Message]:
        """Return the system message and all others, without the first ``since`` exchanges."""
        found: list[Message] = []
        if self._system is not None:
            found.append({"role": "system", "content": self._system})
        for exchange in self.exchanges[since:]:
            found.append({"role": "user", "content": exchange.user})
            found.append({"role": "assistant", "content": exchange.assistant})
        return found

    def ask(self, text: str) -> Iterator[str]:
        """Return the answer to ``text``, piece by piece as the model writes it.

        The oldest exchanges are left out where there is no room for them: see ``left_out``. What
        was written when the iterator is closed is remembered as the answer.

        Raises:
            SpecError: ``text`` alone is too long for the model, or the template refuses it.
        """
        prompt, self.left_out = self._prompt(text)
        return self._answer(text, prompt)

    def undo(self) -> Exchange | None:
        """Take the last exchange away, and return it; None where there is none."""
        self.left_out = 0
        return self.exchanges.pop() if self.exchanges else None

    def reset(self) -> None:
        """Forget all exchanges; the system message stays."""
        self.exchanges.clear()
        self.left_out = 0

    def rows(self) -> list[dict[str, Any]]:
        """Return what was said as rows that a finetuning run can learn from.

        One row with ``messages``; without a template one of ``prompt`` and ``response`` each.
        """
        if self.template is None:
            return [{"prompt": each.user, "response": each.assistant} for each in self.exchanges]
        return [{"messages": self.messages()}] if self.exchanges else []

    def _prompt(self, text: str) -> tuple[str | list[int], int]:
        """Return what the model is given, and how many exchanges are left out."""
        if self.template is None:
            return text, 0
        length = self.writer.max_length
        asked: Message = {"role": "user", "content": text}
        first = min(self.left_out, len(self.exchanges))
        ids: list[int] = []
        for since in range(first, len(self.exchanges) + 1):
            ids = self.template.ids([*self.messages(since=since), asked])
            if length is None or len(ids) + self._room(length) <= length:
                return ids, since
        if length is not None and len(ids) >= length:
            raise SpecError(
                f"the message makes {len(ids)} tokens"
                + (" with the system message" if self._system is not None else "")
                + f", and the model takes {length} with its answer; shorten it"
            )
        return ids, len(self.exchanges)

    def _room(self, length: int) -> int:
        """Return how many tokens are kept free for the answer."""
        return min(self._answering.max_new_tokens, max(1, length // _SHARE))

    def _answer(self, text: str, prompt: str | list[int]) -> Iterator[str]:
        sampling = self._answering.sampling
        pieces = self.writer.write(
            prompt,
            max_new_tokens=self._answering.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed + self._asked,
            stop=self._stop,
        )
        self._asked += 1
        self.ended = None
        written = ""
        try:
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as done:
                    self.ended = done.value
                    return
                except ValueError as error:  # a prompt without a template that is too long
                    raise SpecError(str(error)) from error
                written += piece
                yield piece
        finally:
            if written or self.ended is not None:
                self.exchanges.append(Exchange(text, written))


def open_chat(
    model: str | Path,
    *,
    system: str | None = None,
    chat_template: str | None = None,
    answering: Answering | None = None,
    device: str | None = None,
    precision: Precision = "fp32",
) -> Chat:
    """Begin a conversation with a model.

    Args:
        model: as for ``open_writer``: a run's folder, an export's, or a name on the hub.
        system: the system message.
        chat_template: ``chatml``, or a file with a Jinja template; None = the tokenizer's own.
        answering: how answers are written; greedily by default.
        device: None = a GPU if there is one.
        precision: of weights and computation.

    Raises:
        CheckpointError: there is no model.
        SpecError: there is no chat template, or it cannot be used.
    """
    writer = open_writer(model, device=device, precision=precision)
    template = find_template(writer.tokenizer, chat_template, model=str(model))
    if template is None and not writer.encoder_decoder:
        raise SpecError(
            f"the tokenizer of {model} has no chat template, so nothing says how a conversation "
            f"is written for the model. If it has learned ChatML: --chat-template {CHATML}. "
            "Otherwise give the file of its Jinja template: --chat-template FILE. For one that "
            "only continues texts: foundry generate"
        )
    return Chat(writer, template, system=system, answering=answering)
