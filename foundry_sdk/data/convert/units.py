"""Units of work: about a mebibyte of input, cut so that any worker can do any of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import attrs

from foundry_sdk.data.card import SourceFile
from foundry_sdk.data.convert.split import Splitter

UNIT: Final = 1 << 20
"""Bytes (lines) or characters (texts) of a unit. The output doesn't depend on it."""

Position = Mapping[str, Any]
"""Where a source goes on, as JSON values that only the source understands."""


@attrs.frozen(kw_only=True)
class Unit:
    """One piece of work.

    Attributes:
        header: ``kind: lines`` with ``path`` and ``line`` (number of the first); or
            ``kind: texts`` with ``lengths`` (bytes of each in the payload), ``continues`` and
            ``unfinished`` (see ``UnitEncoder.texts``).
        payload: lines of JSON as they stand in the file, or texts in UTF-8.
        after: where the source goes on behind this unit.
        place: file and line, for messages.
        read: of the whole input, up to here.
        empty, skipped, replaced, inexact_splits: what the source itself counted.
    """

    header: Mapping[str, Any]
    payload: bytes
    after: Position
    place: str
    read: int
    empty: int = 0
    skipped: int = 0
    replaced: int = 0
    inexact_splits: int = 0


class Source(Protocol):
    """An input in dataset order."""

    def identity(self) -> Mapping[str, Any]:
        """Return, as JSON values, what must be equal for a conversion to go on."""

    def total(self) -> int | None:
        """Return the size of the input; None where it is not known."""

    def units(self, start: Position | None, splitter: Splitter | None) -> Iterator[Unit]:
        """Yield the units behind ``start`` (None = from the beginning).

        Args:
            start: ``Unit.after`` of the last unit that is done.
            splitter: cuts documents longer than a unit; None = documents stay whole.

        Raises:
            DataError: the input cannot be read, with file and line.
        """

    def files(self, end: Position | None) -> Sequence[SourceFile]:
        """Return the inputs; ``end``: ``Unit.after`` where reading stopped, None at the end."""


def texts_unit(
    texts: Sequence[str],
    *,
    after: Position,
    place: str,
    read: int,
    continues: bool = False,
    unfinished: bool = False,
    empty: int = 0,
    skipped: int = 0,
    replaced: int = 0,
    inexact_splits: int = 0,
) -> Unit:
    """Return a unit of documents, or of a part of one."""
    data = [text.encode() for text in texts]
    header = {
        "kind": "texts",
        "lengths": [len(item) for item in data],
        "continues": continues,
        "unfinished": unfinished,
    }
    return Unit(
        header=header,
        payload=b"".join(data),
        after=after,
        place=place,
        read=read,
        empty=empty,
        skipped=skipped,
        replaced=replaced,
        inexact_splits=inexact_splits,
    )


def document_units(
    text: str,
    splitter: Splitter | None,
    *,
    start: int,
    inside: Position,
    after: Position,
    place: str,
    read: tuple[int, int],
    replaced: int = 0,
) -> Iterator[Unit]:
    """Yield the units of one document that is in memory, from character ``start`` on.

    Args:
        text: the whole document.
        splitter: None = one unit.
        start: where to go on; 0 for a document not begun.
        inside: position of the document; the character is added as ``char``.
        after: position behind the document.
        place: see ``Unit``.
        read: ``Unit.read`` before and after the document.
        replaced: see ``Unit``; counted in the first unit.
    """
    begin = start
    while True:
        cut = None if splitter is None else splitter.cut(text, begin, UNIT)
        end = len(text) if cut is None else cut.end
        yield texts_unit(
            [text[begin:end]],
            after=after if cut is None else {**inside, "char": end},
            place=place,
            read=read[0] + (read[1] - read[0]) * end // len(text),
            continues=begin > 0,
            unfinished=cut is not None,
            replaced=replaced if begin == 0 else 0,
            inexact_splits=0 if cut is None else int(not cut.exact),
        )
        if cut is None:
            return
        begin = end
