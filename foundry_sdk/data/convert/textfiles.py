"""Text files as a source: each file is one document."""

import codecs
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs

from foundry_sdk.data.card import SourceFile
from foundry_sdk.data.convert.encode import Errors, not_utf8
from foundry_sdk.data.convert.split import LOOK_AHEAD, Splitter
from foundry_sdk.data.convert.units import UNIT, Position, Unit, texts_unit
from foundry_sdk.errors import DataError

_BLOCK: Final = 1 << 20


def find_text_files(folder: str | Path) -> tuple[Path, ...]:
    """Return every ``*.txt`` below ``folder``, or the file itself, sorted by path.

    Raises:
        DataError: there is no such folder, or nothing in it.
    """
    root = Path(folder).expanduser()
    if root.is_file():
        return (root,)
    if not root.is_dir():
        raise DataError(
            f"input_folder: there is no folder {str(folder)!r} (working directory {Path.cwd()})"
        )
    found = sorted(item for item in root.rglob("*.txt") if item.is_file())
    if not found:
        raise DataError(f"input_folder: no file below {str(folder)!r} ends with .txt")
    return tuple(found)


@attrs.frozen(kw_only=True)
class _Checked:
    """What reading a file through told of it."""

    sha256: str
    is_utf8: bool


@attrs.define(kw_only=True, eq=False)
class TextFiles:
    """Files of UTF-8 text, in this order."""

    paths: Sequence[Path]
    errors: Errors
    _checks: dict[int, _Checked] = attrs.field(factory=dict, init=False)
    _starts: Sequence[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        sizes = (path.stat().st_size for path in self.paths)
        self._starts = list(accumulate(sizes, initial=0))

    def identity(self) -> Mapping[str, Any]:
        """See ``Source``."""
        stats = [(path, path.stat()) for path in self.paths]
        return {
            "files": [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        }

    def total(self) -> int | None:
        """See ``Source``."""
        return self._starts[-1]

    def files(self, end: Position | None) -> Sequence[SourceFile]:
        """See ``Source``."""
        whole = len(self.paths) if end is None else int(end["file"])
        return [
            SourceFile(
                path=str(path),
                bytes=path.stat().st_size,
                sha256=self._check(index).sha256 if index < whole else None,
            )
            for index, path in enumerate(self.paths)
        ]

    def units(self, start: Position | None, splitter: Splitter | None) -> Iterator[Unit]:
        """See ``Source``; short files are put together into one unit."""
        start = start or {"file": 0, "char": 0}
        texts: list[str] = []
        counts = _Counts()
        for index in range(start["file"], len(self.paths)):
            path = self.paths[index]
            checked = self._check(index)
            if not checked.is_utf8 and self.errors == "skip":
                counts.skipped += 1
            elif splitter is not None and path.stat().st_size > UNIT:
                if texts:
                    yield self._group(texts, counts, end=index)
                    texts, counts = [], _Counts()
                char = start["char"] if index == start["file"] else 0
                yield from self._long(index, splitter, start=char)
            else:
                counts.replaced += not checked.is_utf8
                text = "".join(self._decoded(index))
                counts.empty += not text
                texts.extend([text] if text else [])
            if sum(map(len, texts)) >= UNIT:
                yield self._group(texts, counts, end=index + 1)
                texts, counts = [], _Counts()
        yield self._group(texts, counts, end=len(self.paths))

    def _group(self, texts: Sequence[str], counts: "_Counts", *, end: int) -> Unit:
        return texts_unit(
            texts,
            after={"file": end, "char": 0},
            place=str(self.paths[end - 1]),
            read=self._starts[end],
            **attrs.asdict(counts),
        )

    def _long(self, index: int, splitter: Splitter, *, start: int) -> Iterator[Unit]:
        """Yield the units of one long file; never more of it in memory than a cut needs."""
        path = self.paths[index]
        blocks = self._decoded(index)
        text = _drop(blocks, start, path)
        begin = start
        read = self._starts[index]
        ended = False
        while not ended:
            text = _fill(text, blocks, LOOK_AHEAD * UNIT)
            cut = splitter.cut(text, 0, UNIT)
            ended = cut is None
            end = len(text) if cut is None else cut.end
            read += len(text[:end].encode())
            yield texts_unit(
                [text[:end]],
                after={"file": index + ended, "char": 0 if ended else begin + end},
                place=str(path),
                read=min(read, self._starts[index + 1]),
                continues=begin > 0,
                unfinished=not ended,
                replaced=int(begin == 0 and not self._check(index).is_utf8),
                inexact_splits=int(cut is not None and not cut.exact),
            )
            begin += end
            text = text[end:]

    def _decoded(self, index: int) -> Iterator[str]:
        """Yield the text of a file, without a byte order mark."""
        replacing = "replace" if self.errors == "replace" else "strict"
        decoder = codecs.getincrementaldecoder("utf-8-sig")(replacing)
        with _open(self.paths[index]) as file:
            while block := file.read(_BLOCK):
                yield decoder.decode(block)
            yield decoder.decode(b"", final=True)

    def _check(self, index: int) -> _Checked:
        """Read a file through: whether it is UTF-8 must be known before its first word is used.

        Raises:
            DataError: it isn't, and ``errors`` is "strict".
        """
        if index in self._checks:
            return self._checks[index]
        path = self.paths[index]
        hasher = hashlib.sha256()
        decoder = codecs.getincrementaldecoder("utf-8")()
        is_utf8 = True
        line, column = 1, 0  # of the first byte that the decoder has not seen
        with _open(path) as file:
            while True:
                block = file.read(_BLOCK)
                hasher.update(block)
                if is_utf8:
                    held = decoder.getstate()[0]
                    try:
                        decoder.decode(block, final=not block)
                    except UnicodeDecodeError as error:
                        is_utf8 = False
                        if self.errors == "strict":
                            where = _place(held + block, error.start, line, column - len(held))
                            raise DataError(not_utf8(f"{path}:{where}", error)) from error
                if not block:
                    break
                line += block.count(b"\n")
                last = block.rfind(b"\n")
                column = column + len(block) if last < 0 else len(block) - last - 1
        self._checks[index] = _Checked(sha256=hasher.hexdigest(), is_utf8=is_utf8)
        return self._checks[index]


@attrs.define
class _Counts:
    empty: int = 0
    skipped: int = 0
    replaced: int = 0


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _place(data: bytes, position: int, line: int, column: int) -> str:
    """Return "line:byte", both from 1, of a position in ``data``, which starts at line, column."""
    lines = data.count(b"\n", 0, position)
    last = data.rfind(b"\n", 0, position)
    byte = position - last if last >= 0 else column + position + 1
    return f"{line + lines}:{byte}"


def _fill(text: str, blocks: Iterator[str], length: int) -> str:
    parts = [text]
    size = len(text)
    while size < length and (block := next(blocks, None)) is not None:
        parts.append(block)
        size += len(block)
    return "".join(parts)


def _drop(blocks: Iterator[str], count: int, path: Path) -> str:
    """Read over ``count`` characters; return what is left of the block they end in."""
    for block in blocks:
        if len(block) >= count:
            return block[count:]
        count -= len(block)
    raise DataError(f"{path}: shorter than when the conversion began; use overwrite")
