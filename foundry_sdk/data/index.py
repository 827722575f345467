"""``index.json`` of an MDS folder, checked before anything is opened, allocated or trusted.

An index comes from elsewhere: a name in it may point out of its folder, a count may ask for more
memory than there is, an encoding may run code when it is read.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk.errors import DataError

INDEX_NAME: Final = "index.json"
_FILE_LIMIT: Final = 1 << 32
_COMPRESSIONS: Final = ("br", "bz2", "gz", "snappy", "zstd")
_SAFE_ENCODING: Final = re.compile(
    r"(bytes|str|int|float16|float32|float64|u?int(8|16|32|64)|str_int|str_float|str_decimal|json|"
    r"ndarray(:(u?int(8|16|32|64)|float(16|32|64)|bool)(:\d+(,\d+)*)?)?)"
)
_HEX: Final = re.compile(r"[0-9a-f]{4,128}")


@attrs.frozen(kw_only=True)
class ShardFile:
    """One file of a shard, as the index states it.

    Attributes:
        basename: its name, inside the folder.
        bytes: its size.
        hashes: name of the hash → hex digest.
    """

    basename: str
    bytes: int
    hashes: Mapping[str, str]


@attrs.frozen(kw_only=True)
class ShardEntry:
    """One shard: its file, its compressed file if there is one, its samples and columns."""

    raw: ShardFile
    zip: ShardFile | None
    samples: int
    columns: Mapping[str, str]

    @property
    def stored(self) -> ShardFile:
        """The file as the writer stored it."""
        return self.zip or self.raw


@attrs.frozen(kw_only=True)
class MDSIndex:
    """The shards of one folder, all of the same columns."""

    path: Path
    shards: Sequence[ShardEntry]

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def columns(self) -> Mapping[str, str]:
        """Column → MDS encoding."""
        return self.shards[0].columns


def read_index(path: Path) -> MDSIndex:
    """Return the index in ``path`` once all of it is known to be sane.

    Raises:
        DataError: it is missing, no JSON, of another version or format, empty, names a file
            outside of its folder, an unknown compression or an encoding that can run code, or
            states a size or a number of samples that cannot be.
    """
    try:
        values = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_no_constant)
    except FileNotFoundError:
        raise DataError(missing_index(path.parent)) from None
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(
            f"{path}: not an index of MDS shards ({error}); convert the data again, or delete a "
            "cached copy so that it is fetched again"
        ) from error
    check = _Checker(path)
    content = check.mapping(values, "document", {"version", "shards"}, optional=frozenset())
    check.equal(content["version"], 2, "version")
    shards = content["shards"]
    if shards == []:
        raise DataError(f"{path}: the data has no samples; convert it again")
    if not isinstance(shards, list):
        raise check.error("shards", shards, "a list of shards")
    entries = [check.shard(entry, f"shards[{number}]") for number, entry in enumerate(shards)]
    names = [file.basename for e in entries for file in (e.raw, e.zip) if file is not None]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise check.error("shards", twice, "a file that belongs to one shard only")
    for number, entry in enumerate(entries):
        if entry.columns != entries[0].columns:
            raise check.error(
                f"shards[{number}].column_names", dict(entry.columns), dict(entries[0].columns)
            )
    return MDSIndex(path=path, shards=entries)


def missing_index(folder: Path) -> str:
    """Return what to say of a folder without an index: missing, another split, or no MDS."""
    if folder.is_dir():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{INDEX_NAME}"))
        if splits:
            return f"{folder}: no {INDEX_NAME} here, but in its splits {splits}; set split: to one"
        return (
            f"{folder}: no {INDEX_NAME}, so this is no folder of MDS shards; make one with "
            "foundry data convert"
        )
    splits = sorted(path.parent.name for path in folder.parent.glob(f"*/{INDEX_NAME}"))
    if splits:
        return f"{folder.parent} does not contain split {folder.name!r}; it has the splits {splits}"
    return f"{folder}: there is no such folder (working directory {Path.cwd()})"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


@attrs.frozen
class _Checker:
    """Checks of one index; each failure names the file, the key, what it held and what may be."""

    path: Path

    def error(self, key: str, found: object, expected: object) -> DataError:
        shown = repr(found)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        return DataError(f"{self.path}: {key}: found {shown}, expected {expected}")

    def equal(self, value: object, expected: object, key: str) -> None:
        if value != expected or type(value) is not type(expected):
            raise self.error(key, value, repr(expected))

    def mapping(
        self, value: object, key: str, needed: set[str], optional: frozenset[str] | None = None
    ) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(key, value, "an object")
        missing = sorted(needed - set(value))
        if missing:
            raise self.error(key, sorted(value), f"the keys {missing} too")
        if optional is not None and set(value) - needed - optional:
            raise self.error(key, sorted(set(value) - needed), f"only the keys {sorted(needed)}")
        return value

    def count(self, value: object, key: str, limit: int) -> int:
        if type(value) is not int or not 0 <= value <= limit:
            raise self.error(key, value, f"a whole number from 0 to {limit}")
        return value

    def shard(self, value: object, key: str) -> ShardEntry:
        names = {"raw_data", "zip_data", "samples", "compression", "version", "format"}
        columns = {"column_names", "column_encodings", "column_sizes", "hashes", "size_limit"}
        entry = self.mapping(value, key, names | columns, frozenset())
        self.equal(entry["version"], 2, f"{key}.version")
        self.equal(entry["format"], "mds", f"{key}.format")
        self.hashes_and_limit(entry, key)
        raw = self.file(entry["raw_data"], f"{key}.raw_data")
        packed = None
        if entry["zip_data"] is not None:
            packed = self.file(entry["zip_data"], f"{key}.zip_data")
            self.compression(entry["compression"], f"{key}.compression")
        elif entry["compression"] is not None:
            raise self.error(f"{key}.zip_data", None, "a file, as compression is set")
        # A sample takes 4 bytes of offset at least, so the stated size bounds the count.
        samples = self.count(entry["samples"], f"{key}.samples", max(0, raw.bytes - 8) // 4)
        return ShardEntry(raw=raw, zip=packed, samples=samples, columns=self.columns(entry, key))

    def hashes_and_limit(self, entry: Mapping[str, Any], key: str) -> None:
        hashes = entry["hashes"]
        if not isinstance(hashes, list) or not all(isinstance(name, str) for name in hashes):
            raise self.error(f"{key}.hashes", hashes, "a list of names")
        limit = entry["size_limit"]
        if limit is not None and not isinstance(limit, str):
            self.count(limit, f"{key}.size_limit", 1 << 62)
        elif isinstance(limit, str) and re.fullmatch(r"\d+ ?([kmgt]?b)?", limit) is None:
            raise self.error(f"{key}.size_limit", limit, "bytes, such as '64mb'")

    def compression(self, value: object, key: str) -> None:
        if not isinstance(value, str) or value.partition(":")[0] not in _COMPRESSIONS:
            raise self.error(key, value, f"one of {', '.join(_COMPRESSIONS)} (with :level)")

    def file(self, value: object, key: str) -> ShardFile:
        entry = self.mapping(value, key, {"basename", "bytes", "hashes"}, frozenset())
        name = entry["basename"]
        inside = (
            isinstance(name, str)
            and name not in {"", ".", "..", INDEX_NAME}
            and not set(name) & set("/\\\0:")
            and len(name) < 256
        )
        if not inside:
            raise self.error(
                f"{key}.basename", name, "a file name inside the folder (this one escapes its root)"
            )
        hashes = entry["hashes"]
        if not isinstance(hashes, dict) or not all(
            isinstance(digest, str) and _HEX.fullmatch(digest) for digest in hashes.values()
        ):
            raise self.error(f"{key}.hashes", hashes, "hex digests by the name of the hash")
        size = self.count(entry["bytes"], f"{key}.bytes", _FILE_LIMIT)
        return ShardFile(basename=name, bytes=size, hashes=hashes)

    def columns(self, entry: Mapping[str, Any], key: str) -> dict[str, str]:
        names, encodings = entry["column_names"], entry["column_encodings"]
        sizes = entry["column_sizes"]
        lists = (names, encodings, sizes)
        if not all(isinstance(item, list) for item in lists) or not names:
            raise self.error(f"{key}.column_names", names, "three lists: names, encodings, sizes")
        if not len(names) == len(encodings) == len(sizes) == len({str(name) for name in names}):
            raise self.error(f"{key}.column_names", names, "as many encodings and sizes, no twins")
        for name, encoding, size in zip(names, encodings, sizes, strict=True):
            where = f"{key}.column_encodings"
            if not isinstance(name, str):
                raise self.error(f"{key}.column_names", name, "a string")
            if encoding == "pkl":
                raise self.error(
                    where, encoding, f"a safe encoding for column {name!r}: pickled data can run "
                    "code, so it is never read; convert the data to another encoding"
                )  # fmt: skip
            if not isinstance(encoding, str) or _SAFE_ENCODING.fullmatch(encoding) is None:
                raise self.error(where, encoding, "an MDS encoding such as ndarray:int32 or str")
            if size is not None:
                self.count(size, f"{key}.column_sizes", _FILE_LIMIT)
        return dict(zip(names, encodings, strict=True))
