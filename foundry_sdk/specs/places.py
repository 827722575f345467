"""Paths into a document, and how messages speak of places and values."""

from collections.abc import Mapping, Sequence

from foundry_sdk.errors import SpecError

Path = tuple[str | int, ...]
"""Where a value is: keys of mappings and indexes of lists."""


def dotted(path: Path) -> str:
    """Return ``a.b[0].c`` for ``("a", "b", 0, "c")``; a key that cannot be printed, quoted."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" for part in path]
    return "".join(parts).removeprefix(".")


def _shown(key: str) -> str:
    return key if key.isprintable() and key.strip() else repr(key)


def describe(value: object) -> str:
    """Return how a message speaks of ``value``: shortened, containers by what they are."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def raise_problems(problems: Sequence[tuple[Path, str]]) -> None:
    """Raise one SpecError with a line per problem, if there is any."""
    if problems:
        raise SpecError("\n".join(f"{dotted(path)}: {text}" for path, text in problems))
