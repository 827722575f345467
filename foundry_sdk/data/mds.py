"""MDS, the shard format of mosaicml-streaming: the only module that knows it.

A folder holds ``shard.00000.mds[.zstd]``, ... and ``index.json``. A shard is ``uint32`` count of
samples, ``uint32`` offsets (count + 1), its configuration as JSON, then the samples. Shards are
written here directly, so that a writer can stop after any shard and go on; the bytes are those
that ``streaming.MDSWriter`` would have made of the same samples.
"""

import bz2
import gzip
import hashlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from foundry_sdk.errors import DataError

INDEX_NAME: Final = "index.json"
TOKEN_COLUMNS: Final = {"tokens": "ndarray:int32"}
TEXT_COLUMNS: Final = {"text": "str"}
SHARD_BYTES: Final = 1 << 26
HASHES: Final = ("sha256",)

_FIXED_SIZES: Final = {"int": 8, "int32": 4, "int64": 8, "float32": 4, "float64": 8, "uint32": 4}
_LEVELS: Final = {
    "zstd": range(1, 23),
    "gz": range(10),
    "bz2": range(1, 10),
    "br": range(12),
    "snappy": None,
}


# --- streaming, imported without what it doesn't need ---------------------------------------


def import_streaming() -> ModuleType:
    """Return the package ``streaming``.

    Its ``vision``, ``text`` and ``multimodal`` parts, which nothing here uses, import
    torchvision and dataset packages; a torchvision built for another torch would break the
    import. Empty modules stand in for them while it happens.

    Raises:
        DataError: mosaicml-streaming is not installed, or cannot be imported.
    """
    if "streaming" in sys.modules:
        return sys.modules["streaming"]
    hide_broken_torchvision()
    with _stand_ins("streaming.vision", "streaming.text", "streaming.multimodal"):
        try:
            return importlib.import_module("streaming")
        except ImportError as error:
            raise DataError(
                f"MDS data is read with mosaicml-streaming, which cannot be imported ({error}); "
                "pip install mosaicml-streaming"
            ) from error


def hide_broken_torchvision() -> None:
    """Make transformers take a torchvision that cannot be imported for one that is not there.

    A torchvision built for another torch raises where transformers and streaming look for it.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # Python's own "not there"


@contextmanager
def _stand_ins(*names: str) -> Iterator[None]:
    made = [name for name in names if name not in sys.modules]
    for name in made:
        sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)


# --- writing --------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Shard:
    """One finished shard: its file, and its entry of the index."""

    basename: str
    data: bytes
    entry: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Digest of the file as it is stored."""
        stored = self.entry["zip_data"] or self.entry["raw_data"]
        digest: str = stored["hashes"]["sha256"]
        return digest


def _valid_compression(_: object, __: object, value: str | None) -> None:
    if value is None:
        return
    name, colon, level = value.partition(":")
    levels = _LEVELS.get(name, ())
    if name in _LEVELS and not colon:
        return
    if levels and level.isascii() and level.isdigit() and int(level) in levels:
        return
    known = [f"{key}[:{steps[0]}-{steps[-1]}]" if steps else key for key, steps in _LEVELS.items()]
    raise DataError(f"compression: unknown {value!r}; known are {', '.join(known)}")


@attrs.frozen(kw_only=True, slots=False)
class ShardLayout:
    """How the shards of one folder are written.

    Attributes:
        columns: name → MDS encoding, such as ``{"tokens": "ndarray:int32"}``.
        compression: "zstd", "zstd:7", "gz", "bz2", "br", "snappy"; None = none.
        size_limit: bytes of a shard before compression. A single larger sample gets its own.
    """

    columns: Mapping[str, str]
    compression: str | None = attrs.field(default=None, validator=_valid_compression)
    size_limit: int = attrs.field(default=SHARD_BYTES)

    @size_limit.validator
    def _check_size_limit(self, _: object, value: int) -> None:
        if not 0 < value < 1 << 32:
            raise DataError(f"size_limit: got {value}; offsets are uint32, so 1 to 2**32 - 1")

    @cached_property
    def config(self) -> dict[str, Any]:
        """What each shard, and its entry of the index, says of its format."""
        names = sorted(self.columns)
        return {
            "version": 2,
            "format": "mds",
            "compression": self.compression,
            "hashes": list(HASHES),
            "size_limit": self.size_limit,
            "column_names": names,
            "column_encodings": [self.columns[name] for name in names],
            "column_sizes": [_FIXED_SIZES.get(self.columns[name]) for name in names],
        }

    @cached_property
    def _config_json(self) -> bytes:
        return json.dumps(self.config, sort_keys=True).encode()

    @property
    def empty_bytes(self) -> int:
        """Size of a shard without samples."""
        return 8 + len(self._config_json)

    def capacity(self, sample_bytes: int) -> int:
        """Return how many samples of ``sample_bytes`` fit into a shard, at least one."""
        return max(1, (self.size_limit - self.empty_bytes) // (sample_bytes + 4))

    def shard(self, number: int, samples: Sequence[bytes]) -> Shard:
        """Return shard ``number`` with ``samples``, each encoded."""
        sizes = np.fromiter((len(sample) for sample in samples), np.int64, len(samples))
        return self._finish(number, sizes, b"".join(samples))

    def shard_of_rows(self, number: int, rows: NDArray[np.uint8]) -> Shard:
        """Return shard ``number`` with equally long samples: uint8 (samples, bytes of one)."""
        sizes = np.full(len(rows), rows.shape[1], np.int64)
        return self._finish(number, sizes, np.ascontiguousarray(rows).data.cast("B"))

    def _finish(self, number: int, sizes: NDArray[np.int64], body: bytes | memoryview) -> Shard:
        start = 4 + 4 * (len(sizes) + 1) + len(self._config_json)
        offsets = np.concatenate([[0], np.cumsum(sizes)]) + start
        if offsets[-1] >= 1 << 32:
            raise DataError(
                f"shard {number}: {offsets[-1]} bytes; MDS keeps offsets in 32 bits, so a single "
                "document must stay below 4 GiB: split it, or write tokens (concat_tokens)"
            )
        raw = b"".join(
            [
                np.uint32(len(sizes)).tobytes(),
                offsets.astype(np.uint32).tobytes(),
                self._config_json,
                body,
            ]
        )
        basename = f"shard.{number:05}.mds"
        entry: dict[str, Any] = {
            "samples": len(sizes),
            "raw_data": _file_entry(basename, raw),
            "zip_data": None,
            **self.config,
        }
        if self.compression is None:
            return Shard(basename=basename, data=raw, entry=entry)
        packed = compress(self.compression, raw)
        basename = f"{basename}.{self.compression.partition(':')[0]}"
        entry["zip_data"] = _file_entry(basename, packed)
        return Shard(basename=basename, data=packed, entry=entry)


def encode_token_rows(rows: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Encode ids for a column ``ndarray:int32``, the only one of its samples.

    Args:
        rows: int32 (samples, sequence length).

    Returns:
        uint8 (samples, bytes of a sample): size, shape and ids of each.
    """
    count, length = rows.shape
    code = next(code for code in range(3) if length < 1 << 8 * 2**code)
    shape = bytes([1 << 2 | code]) + length.to_bytes(2**code, "little")
    head = np.uint32(len(shape) + 4 * length).tobytes() + shape
    samples = np.empty((count, len(head) + 4 * length), np.uint8)
    samples[:, : len(head)] = np.frombuffer(head, np.uint8)
    samples[:, len(head) :] = np.ascontiguousarray(rows, dtype="<i4").view(np.uint8)
    return samples


def encode_text(text: bytes) -> bytes:
    """Encode one UTF-8 document for a column ``str``, the only one of its sample."""
    if len(text) >= 1 << 32:
        raise DataError(f"a document of {len(text)} bytes: MDS holds less than 4 GiB a sample")
    return np.uint32(len(text)).tobytes() + text


def encode_row(columns: Mapping[str, str], row: Mapping[str, Any]) -> bytes:
    """Encode one sample of columns ``str`` and ``json``."""
    values = []
    for name in sorted(columns):
        value = row[name] if columns[name] == "str" else json.dumps(row[name])
        values.append(value.encode())
    sizes = np.array([len(value) for value in values], np.uint64)
    if (sizes >= 1 << 32).any():
        raise DataError(f"a sample of {sizes.max()} bytes: MDS holds less than 4 GiB a value")
    return sizes.astype(np.uint32).tobytes() + b"".join(values)


def index_json(entries: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the bytes of ``index.json`` for shards with these entries."""
    return json.dumps({"version": 2, "shards": list(entries)}, sort_keys=True).encode()


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` under ``path``, whole or not at all, and down to the disk."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def compress(compression: str, data: bytes) -> bytes:
    """Compress with equal bytes on every machine: no clock, no number of cores in the result."""
    name, _, level = compression.partition(":")
    try:
        if name == "zstd":
            zstd = importlib.import_module("zstd")
            packed: bytes = zstd.compress(data, int(level or 3), 1)
        elif name == "br":
            packed = importlib.import_module("brotli").compress(data, quality=int(level or 11))
        elif name == "snappy":
            packed = importlib.import_module("snappy").compress(data)
        elif name == "gz":
            packed = gzip.compress(data, int(level or 9), mtime=0)
        else:
            packed = bz2.compress(data, int(level or 9))
    except ImportError as error:
        raise DataError(f"compression: {name} needs a package: {error}") from error
    return packed


def _file_entry(basename: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    return {"basename": basename, "bytes": len(data), "hashes": {"sha256": digest}}
