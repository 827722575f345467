"""What an example must look like: prompt and response, or the messages of a chat."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from foundry_sdk.errors import DataError

RESPONSES: Final = ("response", "completion")
ROLES: Final = ("user", "assistant", "system", "tool")


@attrs.frozen
class PromptExample:
    """One text that is read and one that is learned."""

    prompt: str
    response: str


@attrs.frozen
class Conversation:
    """Messages, the last of them the assistant's; each has ``role`` and ``content``."""

    messages: Sequence[Mapping[str, Any]]


def checked(example: object, where: str) -> PromptExample | Conversation:
    """Return ``example`` in its one form.

    Args:
        example: what a preprocessor returned, or a row as it is.
        where: which one, for the error.

    Raises:
        DataError: with ``where``, what is wrong, and the example's beginning.
    """
    problem: str | None = None
    if not isinstance(example, Mapping):
        raise DataError(
            f"{where}: expected a mapping with prompt and response, or with messages, got "
            f"{type(example).__name__}: {_short(example)}"
        )
    keys = set(example)
    if keys == {"messages"}:
        problem = _problem_of_chat(example["messages"])
        if problem is None:
            return Conversation([_without_gaps(message) for message in example["messages"]])
    elif len(keys) == 2 and "prompt" in keys and keys & {*RESPONSES}:
        (name,) = keys - {"prompt"}
        for key in ("prompt", name):
            if not isinstance(example[key], str):
                problem = f"{key} must be a text, got {type(example[key]).__name__}"
        if problem is None:
            return PromptExample(example["prompt"], example[name])
    else:
        problem = (
            f"has the keys {', '.join(map(repr, sorted(map(str, keys))))}; expected exactly prompt "
            "and response (or completion), or messages; choose columns with preprocessing_fn: "
            "{prompt: COLUMN, response: COLUMN}, or name a preprocessor"
        )
    raise DataError(f"{where}: {problem}; the example: {_short(example)}")


def _problem_of_chat(messages: object) -> str | None:
    if not isinstance(messages, list | tuple):
        return f"messages must be a list, got {type(messages).__name__}"
    if len(messages) < 2:
        return f"messages must be at least two, got {len(messages)}"
    before = None
    for number, message in enumerate(messages):
        problem = _problem_of_message(message)
        if problem is None and message["role"] == before:
            problem = f"has the same role as the one before, {before!r}; join them"
        if problem is not None:
            return f"messages[{number}] {problem}"
        before = message["role"]
    return (
        None if before == "assistant" else f"the last message must be assistant's, not {before}'s"
    )


def _problem_of_message(message: object) -> str | None:
    if not isinstance(message, Mapping):
        return f"must be a mapping, got {type(message).__name__}"
    given = _without_gaps(message)
    if set(given) != {"role", "content"}:
        return f"must have exactly role and content, got {sorted(map(str, given))}"
    if given["role"] not in ROLES:
        return f"has the role {given['role']!r}; expected one of {', '.join(ROLES)}"
    if not isinstance(given["content"], str | list):
        return f"has a content of {type(given['content']).__name__}; expected a text or a list"
    return None


def _without_gaps(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out keys without a value: tables have them where another row has that key."""
    return {key: value for key, value in message.items() if value is not None}


def _short(example: object) -> str:
    return textwrap.shorten(repr(example), 300, placeholder=" ...")
