"""ChatML: the text of a chat where the tokenizer has no template of its own."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from foundry_sdk.errors import DataError

CHATML: Final = "chatml"
"""Its name."""
CHATML_JINJA: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The same as a tokenizer's chat template."""


def chatml(messages: Sequence[Mapping[str, Any]], where: str, *, generation: bool) -> str:
    """Return the text of messages.

    Args:
        messages: with ``role`` and ``content``.
        where: what an error calls them.
        generation: end with what begins an answer of the assistant.

    Raises:
        DataError: a content is no text.
    """
    parts = []
    for message in messages:
        if not isinstance(message["content"], str):
            raise DataError(
                f"{where}: a message's content is a list, which needs a tokenizer with a chat "
                "template that takes lists"
            )
        parts.append(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n")
    return "".join(parts) + ("<|im_start|>assistant\n" if generation else "")
