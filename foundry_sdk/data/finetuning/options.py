"""What is learned of an example, as the spec says it."""

import re
from typing import Any, Final

import attrs

_AT_LEAST: Final = re.compile(r"length>=([1-9]\d*)")


def _lower(value: Any) -> Any:  # noqa: ANN401
    return value.lower() if isinstance(value, str) else value


def _prompts(_: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if value not in ("none", "all") and not _AT_LEAST.fullmatch(value):
        raise ValueError(f"{attribute.name} must be none, all or length>=N, got {value!r}")


def _responses(_: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if value not in ("last", "all"):
        raise ValueError(f"{attribute.name} must be last or all, got {value!r}")


@attrs.frozen(kw_only=True)
class Targets:
    """What is learned.

    Attributes:
        prompts: "none", "all", or "length>=N": those of at least N tokens.
        responses: "last", or "all" of a chat.
    """

    prompts: str = attrs.field(default="none", converter=_lower, validator=_prompts)
    responses: str = attrs.field(default="last", converter=_lower, validator=_responses)

    def prompt_is_target(self, length: int) -> bool:
        """Tell whether a prompt of so many tokens is learned."""
        return self.shortest_prompt() <= length

    def shortest_prompt(self) -> float:
        """Return the tokens from which on a prompt is learned."""
        found = _AT_LEAST.fullmatch(self.prompts)
        return int(found[1]) if found else 0 if self.prompts == "all" else float("inf")
