"""From raw input to ids: what each worker does with one unit, and nothing else."""

import difflib
import json
import textwrap
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from foundry_sdk.data.convert.split import Encode, Guarantee, Splitter, guarantee_of
from foundry_sdk.data.convert.words import WordEncoder
from foundry_sdk.errors import DataError

Errors = Literal["strict", "replace", "skip"]

_PIECE: Final = 1024
"""Characters tokenized at once: short enough to stay in the processor's cache."""
_SHORT_PIECE: Final = 256
"""The same where most pieces hold but known words: of the others as little as possible."""
_BATCH: Final = 64


@attrs.frozen(kw_only=True)
class Encoded:
    """What became of one unit.

    Attributes:
        data: int32 ids, or the UTF-8 of the documents (no tokenizer), one after the other.
        lengths: int64, ids or bytes of each segment. A segment is a document, except that the
            first may go on a document of the unit before, and the last may go on in the next.
        empty, skipped, replaced: documents left out or changed; see ``DataCard``.
    """

    data: bytes
    lengths: NDArray[np.int64]
    empty: int = 0
    skipped: int = 0
    replaced: int = 0


@attrs.frozen(kw_only=True)
class Vocabulary:
    """All that a worker needs to know of the tokenizer.

    Attributes:
        tokenizer_json: a Rust tokenizer, serialized; None for one written in Python.
        name, kwargs: from which one written in Python is loaded.
        before, after: ids around each document: bos and eos texts, and the special tokens that
            the tokenizer itself puts around a text.
    """

    tokenizer_json: str | None
    name: str
    kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def encoder(self) -> tuple[Encode, Guarantee]:
        """Return the tokenizer as a function, and what is known of cuts (see ``split``)."""
        if self.tokenizer_json is not None:
            return rust_encoder(self.tokenizer_json), guarantee_of(self.tokenizer_json)
        from foundry_sdk.data.contract import TokenizerSpec
        from foundry_sdk.data.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(TokenizerSpec(name=self.name, kwargs=self.kwargs))

        def encode(texts: Sequence[str]) -> list[list[int]]:
            options = {"truncation": False, "padding": False, "add_special_tokens": False}
            return [list(tokenizer(text, **options)["input_ids"]) for text in texts]

        return encode, "none"


def rust_encoder(tokenizer_json: str) -> Encode:
    """Return the ids of a serialized tokenizer, without offsets and other by-products."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts: Sequence[str]) -> list[list[int]]:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    return encode


class UnitEncoder:
    """Turns units into ids, or into documents where there is no tokenizer."""

    def __init__(self, vocabulary: Vocabulary | None, *, column: str, errors: Errors) -> None:
        self._vocabulary = vocabulary
        self._column = column
        self._errors = errors
        if vocabulary is not None:
            self._encode, guarantee = vocabulary.encoder()
            self._splitter = Splitter(self._encode, guarantee)
            self._words: WordEncoder | None = None
            if vocabulary.tokenizer_json is not None and guarantee == "proven":
                self._words = WordEncoder.of(vocabulary.tokenizer_json, self._encode)

    def lines(self, payload: bytes, *, path: str, line: int) -> Encoded:
        """Encode lines of JSON; ``line`` is the number of the first, from 1.

        Raises:
            DataError: a line that is no object with a text, with file and line.
        """
        texts: list[str] = []
        empty = skipped = replaced = 0
        for number, raw in enumerate(payload.split(b"\n"), line):
            if not raw or raw.isspace():
                continue
            where = f"{path}:{number}"
            parsed = parse_line(raw, where=where, column=self._column, errors=self._errors)
            skipped += parsed is None
            if parsed is None:
                continue
            replaced += parsed.replaced
            if parsed.text:
                texts.append(parsed.text)
            empty += not parsed.text
        encoded = self.texts(texts)
        return attrs.evolve(encoded, empty=empty, skipped=skipped, replaced=replaced)

    def texts(
        self, texts: Sequence[str], *, continues: bool = False, unfinished: bool = False
    ) -> Encoded:
        """Encode documents.

        Args:
            texts: none empty, but see ``continues``.
            continues: the first goes on the last document of the unit before.
            unfinished: the last goes on in the next unit.
        """
        if self._vocabulary is None:
            stored = [text.encode() for text in texts]
            sizes = np.fromiter(map(len, stored), np.int64, len(stored))
            return Encoded(data=b"".join(stored), lengths=sizes)
        data: list[bytes] = []
        lengths: list[int] = []
        before, after = (
            array("i", ids).tobytes() for ids in (self._vocabulary.before, self._vocabulary.after)
        )
        for segment, ids in enumerate(self._ids(texts)):
            if segment or not continues:
                ids.insert(0, before)
            if segment + 1 < len(texts) or not unfinished:
                ids.append(after)
            lengths.append(sum(map(len, ids)) // 4)
            data.extend(ids)
        return Encoded(data=b"".join(data), lengths=np.array(lengths, np.int64))

    def _ids(self, texts: Sequence[str]) -> list[list[bytes]]:
        """Return the ids of each text, in pieces: of words looked up, or of the tokenizer."""
        results: list[list[bytes]] = []
        asked: list[str] = []
        slots: list[tuple[list[bytes], int]] = []
        for text in texts:
            parts: list[bytes] = []
            for piece in self._pieces(text):
                if self._words is not None and self._words.takes(piece):
                    parts.append(self._words.ids(piece))
                    continue
                asked.append(piece)
                slots.append((parts, len(parts)))
                parts.append(b"")
            results.append(parts)
        for (parts, index), ids in zip(slots, self._encode_in_batches(asked), strict=True):
            parts[index] = array("i", ids).tobytes()
        return results

    def _pieces(self, text: str) -> Iterable[str]:
        if self._words is not None and self._words.takes(text):
            return (text,)
        if self._splitter.guarantee != "proven":
            return (text,)
        return self._splitter.pieces(text, _PIECE if self._words is None else _SHORT_PIECE)

    def _encode_in_batches(self, pieces: Sequence[str]) -> Iterator[list[int]]:
        for start in range(0, len(pieces), _BATCH):
            yield from self._encode(pieces[start : start + _BATCH])


@attrs.frozen
class Parsed:
    """The text of a line, and whether bytes of it had to be replaced."""

    text: str
    replaced: bool


def parse_line(raw: bytes, *, where: str, column: str, errors: Errors) -> Parsed | None:
    """Return the text of one line of JSON; None if it is to be skipped.

    Raises:
        DataError: the line is not UTF-8 (``errors="strict"``), not JSON, not an object, or has
            no text in ``column``.
    """
    replaced = False
    try:
        line = raw.decode()
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise DataError(not_utf8(f"{where}:{error.start + 1}", error)) from error
        if errors == "skip":
            return None
        line, replaced = raw.decode(errors="replace"), True
    text = _text_of(line.removeprefix("\ufeff"), where=where, column=column)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise DataError(
                f"{where}: lone surrogate U+{ord(text[error.start]):04X} at character "
                f"{error.start} of {column!r}; choose errors: replace or skip"
            ) from error
        if errors == "skip":
            return None
        text, replaced = replace_surrogates(text), True
    return Parsed(text, replaced)


def replace_surrogates(text: str) -> str:
    """Put U+FFFD where half a surrogate pair stands alone, and join whole pairs."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def not_utf8(where: str, error: UnicodeDecodeError) -> str:
    """Say which byte is wrong, and what can be done."""
    return (
        f"{where}: byte 0x{error.object[error.start]:02x} is not UTF-8 ({error.reason}); "
        "convert the file to UTF-8, or choose errors: replace or skip"
    )


def _text_of(line: str, *, where: str, column: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        start = line.strip()[:80]
        if start.startswith("["):
            raise DataError(_is_array(where, start)) from error
        reason = str(error).partition(":")[0]
        raise DataError(f"{where}: not a JSON object ({reason}): {start!r}") from error
    if isinstance(row, list):
        raise DataError(_is_array(where, line.strip()[:80]))
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: expected a JSON object such as {{{column!r}: ...}}, got {line[:80]!r}"
        )
    if column not in row:
        raise DataError(f"{where}: {missing_column(column, row)}")
    text = row[column]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: column {column!r}: expected a string, got {type(text).__name__} "
            f"{textwrap.shorten(repr(text), 60)}"
        )
    return text


def missing_column(column: str, row: Iterable[str]) -> str:
    """Say what a row has instead of ``column``."""
    keys = sorted(str(key) for key in row)
    close = difflib.get_close_matches(column, keys, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    found = textwrap.shorten(", ".join(keys), 200)
    return f"no column {column!r}, found {found or 'none'}{hint} (option text_column)"


def _is_array(where: str, start: str) -> str:
    return (
        f"{where}: a JSON array ({start!r}); expected one object a line (JSON Lines): "
        "jq -c '.[]' FILE.json > FILE.jsonl makes that of it"
    )
