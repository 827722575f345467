"""Where a file of JSON rows is wrong: the library that reads it doesn't say."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

_SHOWN: Final = 80
_SUFFIXES: Final = (".json", ".jsonl")


def find_fault(files: Iterable[Path]) -> str | None:
    """Return the first thing that is wrong with files that could not be read, with its place.

    None = each is a JSON array of objects, or has one object a line.
    """
    return next((fault for path in files if (fault := _fault(path)) is not None), None)


def json_files(named: Any) -> Iterator[Path]:  # noqa: ANN401 - ``data_files`` in any of its shapes
    """Yield the local JSON files that ``data_files`` names; patterns and URIs are left out."""
    if isinstance(named, str):
        path = Path(named).expanduser()
        if path.suffix in _SUFFIXES and path.is_file():
            yield path
    elif isinstance(named, Mapping):
        yield from json_files(list(named.values()))
    elif isinstance(named, list | tuple):
        for each in named:
            yield from json_files(each)


def _fault(path: Path) -> str | None:
    lines = empty = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            lines, empty = lines + 1, empty + (not raw.strip())
            fault = _fault_of_line(raw)
            if fault is None:
                continue
            if raw.lstrip()[:1] in (b"[", b"{") and number == 1 + empty and _is_document(path):
                return None
            return f"{path}:{number}{fault}"
    return f"{path}: has no rows" if lines == empty else None


def _fault_of_line(raw: bytes) -> str | None:
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        return f":{error.start + 1}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
    if not text:
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition(":")[0]
        return f": not a JSON object ({reason}): {text[:_SHOWN]!r}"
    if not isinstance(row, dict):
        return f": expected a JSON object, got {text[:_SHOWN]!r}"
    return None


def _is_document(path: Path) -> bool:
    """Tell whether the file is one JSON value over several lines, with rows in it."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) or (
        isinstance(values, list) and bool(values) and all(isinstance(row, dict) for row in values)
    )
