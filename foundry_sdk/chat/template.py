"""Chat templates: the text that a model is given of a conversation, and what ends its answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from foundry_sdk.data.finetuning.chatml import CHATML, CHATML_JINJA
from foundry_sdk.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
"""``role`` (system, user or assistant) and ``content``."""

_MARK: Final = "cobalt"
"""A text that no template has."""


@attrs.frozen(kw_only=True, eq=False)
class ChatTemplate:
    """A template with its tokenizer.

    Attributes:
        tokenizer: of the model.
        jinja: the template itself.
        name: what messages call it.
    """

    tokenizer: "PreTrainedTokenizerBase"
    jinja: str
    name: str

    def render(self, messages: Sequence[Message], *, generation: bool = True) -> str:
        """Return the text of ``messages``.

        Args:
            messages: what was said.
            generation: end with what begins an answer of the assistant.

        Raises:
            SpecError: the template refuses them.
        """
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self.jinja,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise SpecError(f"{self.name} refuses the conversation: {error}") from error
        return str(text)

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids that an answer to ``messages`` begins after.

        Raises:
            SpecError: the template refuses them.
        """
        text = self.render(messages)
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [int(token) for token in encoded]

    def check_system(self, system: str) -> None:
        """Refuse a system message that the model would not be given.

        Raises:
            SpecError: the template refuses it, or leaves it out.
        """
        messages = [{"role": "system", "content": _MARK}, {"role": "user", "content": "a"}]
        try:
            text = self.render(messages)
        except SpecError as error:
            raise SpecError(f"system message {system!r}: {error}; leave it out") from error
        if _MARK not in text:
            raise SpecError(
                f"system message {system!r}: {self.name} leaves system messages out, so the model "
                "would not read it; say it in the first message"
            )

    def end_of_turn(self) -> tuple[frozenset[int], str | None]:
        """Return the tokens that end an answer, and the text that does where no token does.

        Both are what the template writes behind a message of the assistant.

        Raises:
            SpecError: the template refuses even the shortest conversation.
        """
        question = {"role": "user", "content": "a"}
        answer = {"role": "assistant", "content": _MARK}
        text = self.render([question, answer], generation=False)
        _, found, after = text.rpartition(_MARK)
        if not found:
            raise SpecError(f"{self.name} leaves the assistant's messages out")
        after = after.strip()
        if not after:
            return frozenset(), None
        first = int(self.tokenizer(after, add_special_tokens=False)["input_ids"][0])
        if first in self.tokenizer.added_tokens_decoder:
            return frozenset({first}), None
        return frozenset(), after.splitlines()[0]


def find_template(
    tokenizer: "PreTrainedTokenizerBase", given: str | None, *, model: str
) -> ChatTemplate | None:
    """Return the template that is asked for, else the tokenizer's; None where it has none.

    Args:
        tokenizer: of the model.
        given: ``chatml``, a file with a Jinja template, or None.
        model: what errors call the model.

    Raises:
        SpecError: there is no such file, or the template cannot be used.
    """
    if given == CHATML:
        return _tried(ChatTemplate(tokenizer=tokenizer, jinja=CHATML_JINJA, name="ChatML"))
    if given is not None:
        file = Path(given).expanduser()
        try:
            jinja = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise SpecError(
                f"chat template: expected {CHATML} or a file with a Jinja template, got {given!r}: "
                f"{getattr(error, 'strerror', None) or error}"
            ) from error
        return _tried(ChatTemplate(tokenizer=tokenizer, jinja=jinja, name=f"the template {given}"))
    if not tokenizer.chat_template:
        return None
    try:
        own = tokenizer.get_chat_template()
    except ValueError as error:  # several, and none of them is the default
        raise SpecError(f"the tokenizer of {model}: {error}") from error
    return _tried(
        ChatTemplate(tokenizer=tokenizer, jinja=own, name="the tokenizer's chat template")
    )


def _tried(template: ChatTemplate) -> ChatTemplate:
    if not template.render([{"role": "user", "content": _MARK}]).count(_MARK):
        raise SpecError(f"{template.name} leaves the user's messages out")
    return template
