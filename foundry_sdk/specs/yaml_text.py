"""YAML text to plain values and the line of each key: YAML 1.2 scalars, no tags, with limits.

The parser is ruamel's; what it finds is read event by event, so that depth, the expansion of
aliases and duplicate keys are checked before anything grows.
"""

import re
from typing import TYPE_CHECKING, Any, Final

import attrs
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from foundry_sdk.errors import SpecError
from foundry_sdk.specs.places import Path

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES: Final = 4_000_000
MAX_DEPTH: Final = 64
MAX_NODES: Final = 100_000

_CORE: Final = "tag:yaml.org,2002:"
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT: Final = re.compile(r"[-+]?[0-9]+")
_OCTAL: Final = re.compile(r"0o[0-7]+")
_HEX: Final = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL: Final = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MAX_DIGITS: Final = 1000


@attrs.frozen(kw_only=True)
class Parsed:
    """One YAML document.

    Attributes:
        values: dicts, lists and scalars.
        lines: line (from 1) of each key and list item; the root has the line it starts at.
    """

    values: Any
    lines: dict[Path, int]


class YamlError(SpecError):
    """The text is not the YAML that is read here. ``line`` counts from 1; None = no place."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


@attrs.frozen(kw_only=True)
class _Scalar:
    value: Any
    line: int


@attrs.frozen(kw_only=True)
class _List:
    items: list["_Node"]
    line: int


@attrs.frozen(kw_only=True)
class _Map:
    items: list[tuple[str, int, "_Node"]]
    merges: list["_Node"]
    line: int


_Node = _Scalar | _List | _Map


def parse(text: str) -> Parsed:
    """Read one YAML document.

    Raises:
        YamlError: bad syntax, a tag, a duplicate key, more than one document, or a limit passed.
    """
    if len(text) > MAX_BYTES:
        raise YamlError(f"more than {MAX_BYTES} characters of YAML")
    try:
        node = _Reader(text).document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join((error.problem or error.context or "bad YAML").split())
        if "\\t" in problem:
            problem = "a tab where YAML wants spaces: indent with spaces"
        line, column = (None, None) if mark is None else (mark.line + 1, mark.column + 1)
        raise YamlError(f"bad YAML: {problem}", line, column) from error
    except YAMLError as error:
        raise YamlError(f"bad YAML: {' '.join(str(error).split())}") from error
    builder = _Builder()
    return Parsed(values=builder.build(node, ()), lines=builder.lines)


def scalar(text: str) -> str | int | float | bool | None:
    """Return what a plain (unquoted) scalar means by the core schema of YAML 1.2 (10.3.2)."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    number = None if len(text) > _MAX_DIGITS else _number(text)
    return text if number is None else number


def _number(text: str) -> int | float | None:
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    special = _SPECIAL.fullmatch(text)
    return float("".join(special.groups(""))) if special else None


class _Reader:
    """Nodes of the first document; anchors are known once their node is complete."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = YAML(typ="safe", pure=True).parse(text)
        self._anchors: dict[str, _Node] = {}

    def document(self) -> _Node:
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                break
        else:
            return _Scalar(value=None, line=1)
        root = self._node(next(self._events), 0)
        for event in self._events:
            if isinstance(event, DocumentStartEvent) or not isinstance(event, DocumentEndEvent):
                if isinstance(event, DocumentStartEvent):
                    raise YamlError("a second document begins here", event.start_mark.line + 1)
                break
        return root

    def _node(self, event: Any, depth: int) -> _Node:  # noqa: ANN401 - ruamel's events are untyped
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise YamlError(f"nested deeper than {MAX_DEPTH} levels", line)
        if isinstance(event, AliasEvent):
            if event.anchor not in self._anchors:
                raise YamlError(f"alias *{event.anchor} has no anchor before it", line)
            return self._anchors[event.anchor]
        node: _Node
        if isinstance(event, ScalarEvent):
            node = _Scalar(value=_scalar_value(event, line), line=line)
        elif isinstance(event, SequenceStartEvent):
            _check_tag(event, "seq", line)
            items = []
            while not isinstance(inner := next(self._events), SequenceEndEvent):
                items.append(self._node(inner, depth + 1))
            node = _List(items=items, line=line)
        else:
            node = self._mapping(event, line, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _mapping(self, event: MappingStartEvent, line: int, depth: int) -> _Map:
        _check_tag(event, "map", line)
        items: list[tuple[str, int, _Node]] = []
        merges: list[_Node] = []
        seen: dict[str, int] = {}
        while not isinstance(key := next(self._events), MappingEndEvent):
            here = key.start_mark.line + 1
            if not isinstance(key, ScalarEvent):
                raise YamlError("a key must be a name", here)
            value = self._node(next(self._events), depth + 1)
            if key.value == "<<" and key.style is None:
                merges += value.items if isinstance(value, _List) else [value]
                continue
            name = _text(key, here)
            if name in seen:
                raise YamlError(f"key {name!r} is given twice: lines {seen[name]} and {here}", here)
            seen[name] = here
            items.append((name, here, value))
        for merged in merges:
            if not isinstance(merged, _Map):
                raise YamlError("<<: takes a mapping or a list of mappings", line)
        return _Map(items=items, merges=merges, line=line)


class _Builder:
    """Nodes to values; each use of an alias is a copy of its own."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self._count = 0

    def build(self, node: _Node, path: Path, line: int | None = None) -> Any:  # noqa: ANN401
        self._count += 1
        if self._count > MAX_NODES or len(path) > MAX_DEPTH:
            limit = f"{MAX_NODES} values" if self._count > MAX_NODES else f"{MAX_DEPTH} levels"
            raise YamlError(f"expansion limit: aliases make more than {limit}", node.line)
        self.lines[path] = node.line if line is None else line
        if isinstance(node, _Scalar):
            return node.value
        if isinstance(node, _List):
            return [self.build(item, (*path, i)) for i, item in enumerate(node.items)]
        return {
            key: self.build(value, (*path, key), here)
            for key, (here, value) in self._merged(node).items()
        }

    def _merged(self, node: _Map, depth: int = 0) -> dict[str, tuple[int, _Node]]:
        """Return the keys of ``node`` and of what it merges; its own and earlier ones win."""
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_NODES:
            raise YamlError("expansion limit: too many merge keys", node.line)
        merged = {key: (line, value) for key, line, value in node.items}
        for other in node.merges:
            if isinstance(other, _Map):
                for key, found in self._merged(other, depth + 1).items():
                    merged.setdefault(key, found)
        return merged


def _scalar_value(event: ScalarEvent, line: int) -> str | int | float | bool | None:
    text = _text(event, line)
    tag = _tag(event)
    if tag is None:
        return scalar(text) if event.style is None else text
    if tag in {"!", f"{_CORE}str"}:
        return text
    value = scalar(text)
    kinds: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "null": (type(None),),
    }
    kind = tag.removeprefix(_CORE)
    if tag != f"{_CORE}{kind}" or kind not in kinds:
        raise YamlError(f"tag refused: {_shown(tag)}", line)
    if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise YamlError(f"{text!r} is no {kind}", line)
    return float(value) if kind == "float" and isinstance(value, int) else value


def _text(event: ScalarEvent, line: int) -> str:
    text: str = event.value
    try:  # "\ud83d\ude00" is one character, as in JSON
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise YamlError("half of a surrogate pair is no character", line) from error


def _check_tag(event: Any, kind: str, line: int) -> None:  # noqa: ANN401
    tag = _tag(event)
    if tag not in {None, "!", f"{_CORE}{kind}"}:
        raise YamlError(f"tag refused: {_shown(str(tag))}", line)


def _tag(event: Any) -> str | None:  # noqa: ANN401
    return None if event.tag is None else str(event.tag)


def _shown(tag: str) -> str:
    return f"!!{tag.removeprefix(_CORE)}" if tag.startswith(_CORE) else tag
