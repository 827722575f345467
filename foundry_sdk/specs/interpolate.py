"""``${a.b}`` in a document: looked up from its root, then in its ``variables``."""

import difflib
import re
from typing import Any, Final

from foundry_sdk.errors import SpecError
from foundry_sdk.specs.places import Path
from foundry_sdk.specs.yaml_text import MAX_BYTES, MAX_DEPTH, MAX_NODES

_OPEN: Final = "${"
_REFERENCE: Final = re.compile(r"\$\{([^${}]*)\}")
_PIECE: Final = re.compile(r"\\\$\{|\$\{([^${}]*)\}|\$\{")
_INDEX: Final = re.compile(r"\[(\d+)\]")
_MISSING: Final = object()


def interpolate(values: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[Path, str]]]:
    r"""Return a copy of ``values`` with each ``${...}`` replaced, and what could not be.

    A value that is one reference takes the type of what it names, mappings and lists included;
    a reference inside a text is written into it. ``\${`` stands for itself.
    """
    filler = _Filler(values)
    problems: list[tuple[Path, str]] = []
    return filler.tree(values, (), problems), problems


class _Filler:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._done: dict[str, Any] = {}
        self._nodes = 0
        self._characters = 0

    def tree(self, value: Any, path: Path, problems: list[tuple[Path, str]]) -> Any:  # noqa: ANN401
        """Fill in a whole tree; a problem is noted and leaves the text as it is."""
        if isinstance(value, dict):
            return {key: self.tree(item, (*path, key), problems) for key, item in value.items()}
        if isinstance(value, list):
            return [self.tree(item, (*path, i), problems) for i, item in enumerate(value)]
        try:
            return self._filled(value, ())
        except SpecError as error:
            problems.append((path, str(error)))
            return value

    def _filled(self, value: Any, chain: tuple[str, ...]) -> Any:  # noqa: ANN401
        """Fill in ``value``; ``chain`` holds the references that led to it."""
        self._nodes += 1
        if self._nodes > MAX_NODES or len(chain) > MAX_DEPTH:
            raise SpecError("expansion limit: ${...} make too many values")
        if isinstance(value, dict):
            return {key: self._filled(item, chain) for key, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item, chain) for item in value]
        if not isinstance(value, str) or _OPEN not in value:
            return value
        if whole := _REFERENCE.fullmatch(value):
            return self._copy(self._named(whole.group(1), chain))

        def written(piece: re.Match[str]) -> str:
            if piece.group().startswith("\\"):
                return _OPEN
            if piece.group(1) is None:
                raise SpecError(f"{value!r}: '${{' without its '}}', or one ${{...}} in another")
            return self._text(piece.group(1), chain)

        text = _PIECE.sub(written, value)
        self._characters += len(text)
        if self._characters > MAX_BYTES:
            raise SpecError("expansion limit: ${...} make too long a text")
        return text

    def _named(self, name: str, chain: tuple[str, ...]) -> Any:  # noqa: ANN401
        name = name.strip()
        if name in chain:
            loop = [*chain[chain.index(name) :], name]
            raise SpecError(f"${{...}} go round in a circle: {' -> '.join(loop)}")
        if name not in self._done:
            self._done[name] = self._filled(self._find(name), (*chain, name))
        return self._done[name]

    def _copy(self, value: Any) -> Any:  # noqa: ANN401
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise SpecError("expansion limit: ${...} make too many values")
        if isinstance(value, dict):
            return {key: self._copy(item) for key, item in value.items()}
        return [self._copy(item) for item in value] if isinstance(value, list) else value

    def _text(self, name: str, chain: tuple[str, ...]) -> str:
        value = self._named(name, chain)
        if isinstance(value, dict | list):
            kind = "mapping" if isinstance(value, dict) else "list"
            raise SpecError(f"${{{name}}} is a {kind}, which cannot be part of a text")
        if value is None or isinstance(value, bool):
            return "null" if value is None else str(value).lower()
        return str(value)

    def _find(self, name: str) -> Any:  # noqa: ANN401
        if ":" in name:
            raise SpecError(
                f"${{{name}}}: resolvers are not supported; put the value under 'variables'"
            )
        steps = _INDEX.sub(r".\1", name).split(".")
        value = _walk(self._root, steps)
        if value is _MISSING:
            value = _walk(self._root.get("variables"), steps)
        if value is _MISSING:
            variables = self._root.get("variables")
            known = [key for key in self._root if key != "variables"]
            if isinstance(variables, dict):
                known += [f"variables.{key}" for key in variables] + list(variables)
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean ${{{near[0]}}}?" if near else "set it under 'variables'"
            raise SpecError(f"${{{name}}} names nothing in this document; {hint}")
        return value


def _walk(value: Any, steps: list[str]) -> Any:  # noqa: ANN401
    for step in steps:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isascii() and step.isdigit() and len(step) < 7:
            if int(step) >= len(value):
                return _MISSING
            value = value[int(step)]
        else:
            return _MISSING
    return value
