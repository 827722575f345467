"""JSON Lines files as a source: read once, in order, by bytes."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import attrs

from foundry_sdk.data.card import SourceFile
from foundry_sdk.data.convert.encode import Errors, parse_line
from foundry_sdk.data.convert.split import Splitter
from foundry_sdk.data.convert.units import UNIT, Position, Unit, document_units
from foundry_sdk.errors import DataError

SUFFIXES: Final = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
LINE_LIMIT: Final = 1 << 28
"""Bytes: a longer line is taken for a file that is no JSON Lines."""


def find_files(path: str | Path) -> tuple[Path, ...]:
    """Return the files that ``path`` names, sorted: a file, a folder, or a pattern with ``*``.

    Raises:
        DataError: there are none.
    """
    text = os.path.expanduser(path)
    folder = Path(text)
    if folder.is_file():
        return (folder,)
    if folder.is_dir():
        found = sorted(item for item in folder.iterdir() if item.name.endswith(SUFFIXES))
        if found:
            return tuple(found)
        names = ", ".join(sorted(item.name for item in folder.iterdir())[:5]) or "nothing"
        raise DataError(f"path: the folder {text!r} holds no {', '.join(SUFFIXES)}; found {names}")
    found = sorted(Path(item) for item in glob(text, recursive=True) if Path(item).is_file())
    if found:
        return tuple(found)
    raise DataError(
        f"path: there is no file, folder or match of {text!r} (working directory {Path.cwd()})"
    )


@attrs.frozen(kw_only=True)
class _Lines:
    """A line that is longer than a unit, or a block of whole lines.

    Attributes:
        number: of its first line, from 1.
        offset, end: bytes of the (unpacked) file.
    """

    data: bytes
    number: int
    offset: int
    end: int
    next_number: int

    @property
    def is_long(self) -> bool:
        """Tell whether this is a single line that is cut, if it may be."""
        return len(self.data) > UNIT and self.next_number - self.number <= 1


@attrs.define(kw_only=True, eq=False)
class JsonLines:
    """Lines of JSON with a text in ``column``, from files in this order."""

    paths: Sequence[Path]
    column: str
    errors: Errors
    line_limit: int = LINE_LIMIT
    _digests: dict[int, str] = attrs.field(factory=dict, init=False)

    def identity(self) -> Mapping[str, Any]:
        """See ``Source``."""
        stats = [(path, path.stat()) for path in self.paths]
        return {
            "files": [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        }

    def total(self) -> int | None:
        """See ``Source``; None with packed files, whose size is not that of the text."""
        if any(path.suffix == ".gz" for path in self.paths):
            return None
        return sum(path.stat().st_size for path in self.paths)

    def files(self, end: Position | None) -> Sequence[SourceFile]:
        """See ``Source``."""
        whole = len(self.paths) if end is None else int(end["file"])
        return [
            SourceFile(
                path=str(path),
                bytes=path.stat().st_size,
                sha256=self._digest(index) if index < whole else None,
            )
            for index, path in enumerate(self.paths)
        ]

    def units(self, start: Position | None, splitter: Splitter | None) -> Iterator[Unit]:
        """See ``Source``."""
        start = start or {"file": 0, "offset": 0, "line": 1}
        before = sum(path.stat().st_size for path in self.paths[: start["file"]])
        for index in range(start["file"], len(self.paths)):
            here = start if index == start["file"] else {"file": index, "offset": 0, "line": 1}
            for block in self._blocks(index, here["offset"], here["line"]):
                char = here.get("char", 0) if block.offset == here["offset"] else 0
                yield from self._units_of(block, index, splitter, char=char, before=before)
            before += self.paths[index].stat().st_size

    def _units_of(
        self, block: _Lines, index: int, splitter: Splitter | None, *, char: int, before: int
    ) -> Iterator[Unit]:
        path = str(self.paths[index])
        where = f"{path}:{block.number}"
        after = {"file": index, "offset": block.end, "line": block.next_number}
        if block.is_long and splitter is not None:
            parsed = parse_line(block.data, where=where, column=self.column, errors=self.errors)
            if parsed is not None and parsed.text:
                yield from document_units(
                    parsed.text,
                    splitter,
                    start=char,
                    inside={"file": index, "offset": block.offset, "line": block.number},
                    after=after,
                    place=where,
                    read=(before + block.offset, before + block.end),
                    replaced=int(parsed.replaced),
                )
                return
        yield Unit(
            header={"kind": "lines", "path": path, "line": block.number},
            payload=block.data,
            after=after,
            place=where,
            read=before + block.end,
        )

    def _blocks(self, index: int, offset: int, number: int) -> Iterator[_Lines]:
        """Yield the lines of a file from ``offset`` on: long ones alone, others a unit's worth."""
        path = self.paths[index]
        with _open(path) as file:
            hasher = hashlib.sha256()
            _skip(file, offset, hasher, path)
            parts: list[bytes] = []  # of the line that isn't complete yet
            at = offset
            # Blocks end at multiples of a unit: units are the same wherever reading starts.
            while block := _read(file, path, UNIT - at % UNIT):
                at += len(block)
                hasher.update(block)
                parts.append(block)
                first, last = block.find(b"\n") + 1, block.rfind(b"\n") + 1
                length = sum(map(len, parts))
                if length > self.line_limit:
                    raise DataError(
                        f"{path}:{number}: a line of more than {self.line_limit} bytes; expected "
                        "one JSON object a line"
                    )
                if not first:
                    continue
                data = b"".join(parts)
                first, last = (length - len(block) + position for position in (first, last))
                for begin, end in ((0, first), (first, last)) if first > UNIT else ((0, last),):
                    if begin < end:
                        line = _lines(data[begin:end], number=number, offset=offset)
                        yield line
                        offset, number = line.end, line.next_number
                parts = [data[last:]] if last < length else []
            if parts:
                yield _lines(b"".join(parts), number=number, offset=offset)
            if path.suffix != ".gz":
                self._digests[index] = hasher.hexdigest()

    def _digest(self, index: int) -> str:
        """Return the digest of a file that was read, or was read by an earlier process."""
        if index not in self._digests:
            with self.paths[index].open("rb") as file:
                self._digests[index] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._digests[index]


def _lines(data: bytes, *, number: int, offset: int) -> _Lines:
    return _Lines(
        data=data,
        number=number,
        offset=offset,
        end=offset + len(data),
        next_number=number + data.count(b"\n"),
    )


def _open(path: Path) -> BinaryIO:
    try:
        if path.suffix == ".gz":
            return cast("BinaryIO", gzip.open(path, "rb"))
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _read(file: BinaryIO, path: Path, size: int) -> bytes:
    try:
        return file.read(size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})") from error


def _skip(file: BinaryIO, offset: int, hasher: "hashlib._Hash", path: Path) -> None:
    """Read up to ``offset``: the digest is of the whole file, and packed ones can't be sought."""
    while offset:
        block = _read(file, path, min(UNIT, offset))
        if not block:
            raise DataError(f"{path}: shorter than when the conversion began; use overwrite")
        hasher.update(block)
        offset -= len(block)
