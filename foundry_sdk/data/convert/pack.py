"""Rows out of a stream of documents: the order and nothing else decides what is in a row."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from foundry_sdk.data import mds
from foundry_sdk.data.convert.encode import Encoded


@attrs.define
class Counts:
    """What was written and left out so far; see ``DataCard``."""

    samples: int = 0
    documents: int = 0
    empty_documents: int = 0
    skipped_documents: int = 0
    replaced_documents: int = 0
    inexact_splits: int = 0
    dropped_tokens: int = 0


class Packer(Protocol):
    """Collects samples into shards."""

    counts: Counts

    @property
    def full(self) -> bool:
        """Whether as many samples as asked for are there."""

    def add(self, encoded: Encoded, *, continues: bool) -> Iterator[mds.Shard]:
        """Take one unit, whose first segment may go on a document; yield each shard it fills."""

    def finish(self) -> Iterator[mds.Shard]:
        """Yield the last shard, if there is something in it."""

    def carry(self) -> bytes:
        """Return what has been taken and is in no shard yet."""

    def restore(self, carry: bytes, state: Mapping[str, Any]) -> Self:
        """Go on from ``carry()`` and ``state()``."""

    def state(self) -> dict[str, Any]:
        """Return the counts and the number of shards, as JSON values."""


class TokenPacker:
    """Concatenates documents and cuts the stream into rows of ``length`` ids.

    With ``wrap=False`` the rest of a document that fills a row is thrown away, and the next row
    begins with the next document; a document that fills no row is joined by the next one.
    """

    def __init__(
        self, layout: mds.ShardLayout, *, length: int, wrap: bool, max_samples: int | None
    ) -> None:
        self.counts = Counts()
        self._layout = layout
        self._length = length
        self._wrap = wrap
        self._max_samples = max_samples
        row_bytes = mds.encode_token_rows(np.zeros((1, length), np.int32)).shape[1]
        self._capacity = layout.capacity(row_bytes)
        self._buffer = np.empty(self._capacity * length, np.int32)
        self._fill = 0
        self._shards = 0
        self._discards = False  # the rest of the document at hand

    @property
    def full(self) -> bool:
        """See ``Packer``."""
        return self._missing() == 0

    def add(self, encoded: Encoded, *, continues: bool) -> Iterator[mds.Shard]:
        """See ``Packer``."""
        ids = np.frombuffer(encoded.data, np.int32)
        if self._wrap:
            missing = self._missing()
            begun = encoded.lengths[1:] if continues else encoded.lengths
            if missing is not None and missing <= len(ids):
                starts = np.cumsum(encoded.lengths) - encoded.lengths
                begun = begun[starts[len(starts) - len(begun) :] < missing]
            self.counts.documents += len(begun)
            yield from self._take(ids[:missing])
            return
        start = 0
        for index, length in enumerate(encoded.lengths.tolist()):
            if self.full:
                return
            is_new = index > 0 or not continues
            self.counts.documents += is_new
            self._discards = self._discards and not is_new
            room = 0 if self._discards else self._length - self._fill % self._length
            yield from self._take(ids[start : start + min(length, room)])
            self._discards = self._discards or length >= room
            self.counts.dropped_tokens += max(0, length - room)
            start += length

    def finish(self) -> Iterator[mds.Shard]:
        """See ``Packer``."""
        rows = self._fill // self._length
        self.counts.dropped_tokens += self._fill % self._length
        if rows:
            self._fill = rows * self._length
            yield self._shard()

    def carry(self) -> bytes:
        """See ``Packer``."""
        return self._buffer[: self._fill].astype("<i4").tobytes()

    def state(self) -> dict[str, Any]:
        """See ``Packer``."""
        return {
            "counts": attrs.asdict(self.counts),
            "shards": self._shards,
            "discards": self._discards,
        }

    def restore(self, carry: bytes, state: Mapping[str, Any]) -> Self:
        """See ``Packer``."""
        ids = np.frombuffer(carry, "<i4")
        self._buffer[: len(ids)] = ids
        self._fill = len(ids)
        self.counts = Counts(**state["counts"])
        self._shards = state["shards"]
        self._discards = state["discards"]
        return self

    def _missing(self) -> int | None:
        """Return how many ids are still wanted; None = all there are."""
        if self._max_samples is None:
            return None
        return (self._max_samples - self.counts.samples) * self._length - self._fill

    def _take(self, ids: NDArray[np.int32]) -> Iterator[mds.Shard]:
        while len(ids):
            part = ids[: len(self._buffer) - self._fill]
            self._buffer[self._fill : self._fill + len(part)] = part
            self._fill += len(part)
            ids = ids[len(part) :]
            if self._fill == len(self._buffer):
                yield self._shard()

    def _shard(self) -> mds.Shard:
        rows = self._buffer[: self._fill].reshape(-1, self._length)
        shard = self._layout.shard_of_rows(self._shards, mds.encode_token_rows(rows))
        self.counts.samples += len(rows)
        self._shards += 1
        self._fill = 0
        return shard


class TextPacker:
    """One document, one row."""

    def __init__(self, layout: mds.ShardLayout, *, max_samples: int | None) -> None:
        self.counts = Counts()
        self._layout = layout
        self._max_samples = max_samples
        self._samples: list[bytes] = []
        self._bytes = layout.empty_bytes
        self._shards = 0

    @property
    def full(self) -> bool:
        """See ``Packer``."""
        return self._max_samples == self.counts.samples + len(self._samples)

    def add(self, encoded: Encoded, *, continues: bool) -> Iterator[mds.Shard]:
        """See ``Packer``."""
        del continues  # documents are never cut here
        start = 0
        for length in encoded.lengths.tolist():
            if self.full:
                return
            sample = mds.encode_text(encoded.data[start : start + length])
            start += length
            if self._samples and self._bytes + len(sample) + 4 > self._layout.size_limit:
                yield self._shard()
            self._samples.append(sample)
            self._bytes += len(sample) + 4
            self.counts.documents += 1

    def finish(self) -> Iterator[mds.Shard]:
        """See ``Packer``."""
        if self._samples:
            yield self._shard()

    def carry(self) -> bytes:
        """See ``Packer``; samples begin with their length."""
        return b"".join(self._samples)

    def state(self) -> dict[str, Any]:
        """See ``Packer``."""
        return {"counts": attrs.asdict(self.counts), "shards": self._shards}

    def restore(self, carry: bytes, state: Mapping[str, Any]) -> Self:
        """See ``Packer``."""
        start = 0
        while start < len(carry):
            end = start + 4 + int.from_bytes(carry[start : start + 4], "little")
            self._samples.append(carry[start:end])
            self._bytes += end - start + 4
            start = end
        self.counts = Counts(**state["counts"])
        self._shards = state["shards"]
        return self

    def _shard(self) -> mds.Shard:
        shard = self._layout.shard(self._shards, self._samples)
        self.counts.samples += len(self._samples)
        self._shards += 1
        self._samples, self._bytes = [], self._layout.empty_bytes
        return shard
