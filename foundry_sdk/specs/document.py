"""A spec file as plain values: overrides applied, ``${...}`` filled in, every place remembered."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Final

import attrs

from foundry_sdk.errors import SpecError
from foundry_sdk.specs.interpolate import interpolate
from foundry_sdk.specs.places import Path, describe, dotted
from foundry_sdk.specs.yaml_text import MAX_BYTES, YamlError, parse

_INDEX: Final = re.compile(r"\[(\d+)\]")
_MAX_INDEX_DIGITS: Final = 6


@attrs.frozen(kw_only=True)
class Document:
    """The plain values of one spec.

    Attributes:
        name: the file's name as it was given, or what else messages should call it.
        values: nested dicts and lists of ``str | int | float | bool | None``.
        places: where a value was given, ``pretrain.yaml:31`` or ``override 'a.b=c'``.
    """

    name: str
    values: dict[str, Any]
    places: Mapping[Path, str] = attrs.field(factory=dict, repr=False)

    def where(self, path: Path) -> str:
        """Return the place of ``path``, or of the nearest mapping that it is, or would be, in."""
        for end in range(len(path), -1, -1):
            if (place := self.places.get(path[:end])) is not None:
                return place
        return self.name


def load(path: str | FilePath, overrides: Sequence[str] = ()) -> Document:
    """Read a spec file and apply ``a.b.c=value`` overrides as if they were lines of it.

    An override's value is YAML (``1e-4``, ``[0.9, 0.95]``, ``{window_size: 10}``, ``null``); a
    mapping is merged into one that is there, everything else replaces. Path parts may be list
    indexes: ``eval_loader.0.label=x``.

    Raises:
        SpecError: the file cannot be read, is no YAML mapping, or an override or ``${...}``
            does not fit it.
    """
    name = str(path)
    parsed = _parsed(_read(FilePath(path)), name)
    if parsed.values is None:
        raise SpecError(
            f"{name}: the file is empty; a spec needs at least model, tokenizer, "
            "optimizer, scheduler, train_loader, max_duration, max_seq_len and "
            "global_train_batch_size"
        )
    if not isinstance(parsed.values, dict):
        raise SpecError(
            f"{name}: expected a mapping (key: value) at the top, got {describe(parsed.values)}"
        )
    places = {place: f"{name}:{line}" for place, line in parsed.lines.items() if place}
    return _finished(name, parsed.values, places, overrides)


def from_values(
    values: Mapping[str, Any], *, name: str = "spec", overrides: Sequence[str] = ()
) -> Document:
    """Make a document of plain values, such as a run record's resolved spec.

    Raises:
        SpecError: an override or a ``${...}`` does not fit.
    """
    return _finished(name, _copied(values), {}, overrides)


def _finished(
    name: str, values: dict[str, Any], places: dict[Path, str], overrides: Sequence[str]
) -> Document:
    mistakes: list[str] = []
    for override in overrides:
        try:
            _apply(override, values, places)
        except SpecError as error:
            mistakes.append(f"override {override!r}: {error}")
    if mistakes:
        raise SpecError("\n".join(mistakes))
    draft = Document(name=name, values=values, places=places)
    filled, problems = interpolate(values)
    if problems:
        lines = [f"{dotted(path)}: {text} ({draft.where(path)})" for path, text in problems]
        raise SpecError("\n".join(lines))
    return attrs.evolve(draft, values=filled)


def _read(path: FilePath) -> str:
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{path}: larger than {MAX_BYTES} bytes, so this is no spec")
        data = path.read_bytes()
    except FileNotFoundError as error:
        near = _similar_files(path)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SpecError(f"{path}: no such file (looked from {FilePath.cwd()}){hint}") from error
    except IsADirectoryError as error:
        raise SpecError(f"{path}: is a directory; give the YAML file in it") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise SpecError(f"{path}: cannot be read: {error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError(
            f"{path}:{line}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; save "
            "the file as UTF-8"
        ) from error


def _similar_files(path: FilePath) -> list[str]:
    if not path.parent.is_dir():
        return []
    siblings = {entry.name for entry in path.parent.iterdir()}
    near = difflib.get_close_matches(path.name, sorted(siblings), n=1)
    return [str(path.parent / name) for name in near]


def _parsed(text: str, name: str) -> Any:  # noqa: ANN401
    try:
        return parse(text)
    except YamlError as error:
        place = ":".join(str(p) for p in (name, error.line, error.column) if p is not None)
        raise SpecError(f"{place}: {error.message}") from error


def _apply(override: str, values: dict[str, Any], places: dict[Path, str]) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise SpecError("expected key=value, such as optimizer.lr=1e-4")
    steps = _INDEX.sub(r".\1", key.strip()).split(".")
    if not all(steps):
        raise SpecError("expected a dotted path before '=', such as optimizer.lr")
    try:
        value = parse(text).values
    except YamlError as error:
        raise SpecError(f"{error.message}; a text with special characters needs quotes") from error
    target: Any = values
    path: Path = ()
    for step in steps[:-1]:
        at = _step(target, step, path)
        if isinstance(target, dict) and target.get(step) is None:
            target[step] = {}
        target, path = target[at], (*path, at)
    last = _step(target, steps[-1], path)
    path = (*path, last)
    present = target[last] if isinstance(last, int) else target.get(last)
    if isinstance(present, dict) and isinstance(value, dict):
        _merge(present, value, path, places, f"override {override!r}")
        return
    for old in [place for place in places if place[: len(path)] == path]:
        del places[old]
    target[last] = value
    places[path] = f"override {override!r}"


def _step(target: object, step: str, path: Path) -> str | int:
    """Return the key or index that ``step`` is in ``target``."""
    here = dotted(path) or "the top level"
    if isinstance(target, dict):
        return step
    if not isinstance(target, list):
        raise SpecError(f"{here} is {describe(target)}, so there is nothing below it to set")
    if not (step.isascii() and step.isdigit() and len(step) <= _MAX_INDEX_DIGITS):
        raise SpecError(f"{here} is a list: {step!r} must be an index, such as {here}.0")
    if int(step) >= len(target):
        raise SpecError(f"{here} has {len(target)} items (0 to {len(target) - 1}), no {step}")
    return int(step)


def _merge(
    into: dict[str, Any], new: dict[str, Any], path: Path, places: dict[Path, str], place: str
) -> None:
    for key, value in new.items():
        here = (*path, key)
        present = into.get(key)
        if isinstance(present, dict) and isinstance(value, dict):
            _merge(present, value, here, places, place)
            continue
        for old in [other for other in places if other[: len(here)] == here]:
            del places[old]
        into[key] = value
        places[here] = place


def _copied(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {str(key): _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value
