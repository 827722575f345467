"""Conversations as ChatML text: a plugin of foundry-sdk."""

from collections.abc import Iterable, Mapping
from typing import Any

from foundry_sdk.component import ComponentSpec
from foundry_sdk.data.contract import PromptResponse
from foundry_sdk.data.preprocess import preprocessor
from foundry_sdk.errors import DataError
from foundry_sdk.hookspecs import hookimpl

ROLES = ("system", "user", "assistant", "tool")


@preprocessor("chatml")
def chatml(row: Mapping[str, Any]) -> PromptResponse:
    """Conversations in ``messages`` as ChatML; the last answer is what is learned.

    Raises:
        DataError: the row has no conversation, or it does not end with an answer.
    """
    messages = row.get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(f"expected at least two messages, found the columns {sorted(row)}")
    for number, message in enumerate(messages):
        role = message.get("role")
        if role not in ROLES or not isinstance(message.get("content"), str):
            raise DataError(
                f"messages[{number}]: expected a role of {', '.join(ROLES)} and content that is "
                f"text, got {dict(message)!r}"
            )
    if messages[-1]["role"] != "assistant":
        raise DataError(f"the last message is of {messages[-1]['role']!r}, expected 'assistant'")
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages[:-1]]
    return {
        "prompt": "".join(turns) + "<|im_start|>assistant\n",
        "response": f"{messages[-1]['content']}<|im_end|>\n",
    }


@hookimpl
def foundry_components() -> Iterable[type[ComponentSpec]]:
    """Offer the preprocessor."""
    return [chatml]
