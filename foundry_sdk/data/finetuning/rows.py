"""Rows of a dataset, by their number: of the hub, of local files, or of MDS shards."""

import functools
import hashlib
import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from foundry_sdk.data.finetuning.json_faults import find_fault, json_files
from foundry_sdk.data.finetuning.remote import ENDINGS, fetch, find_table, is_uri
from foundry_sdk.errors import DataError, FoundryError

if TYPE_CHECKING:
    from datasets import Dataset

    from foundry_sdk.data.verified_stream import VerifiedStream

Row = Mapping[str, Any]
LOCAL_FORMATS: Final = ("json", "csv", "parquet")
FORMATS: Final = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_HARMLESS: Final = (*ENDINGS, ".lock", ".metadata", ".gitignore")


class Rows(Protocol):
    """An opened source: every row is there."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def identity(self) -> dict[str, Any]:
        """Return JSON values that differ where the rows differ."""

    def read(self, start: int) -> Iterator[Row]:
        """Yield the rows from number ``start`` on."""

    def chat_template(self) -> str | None:
        """Return what made chats text where they were tokenized beforehand; None = nothing."""

    def place(self, number: int) -> str:
        """Return what an error calls a row."""

    def close(self) -> None:
        """Let go of what only this process may hold."""


class RowSource(Protocol):
    """Where rows are from, before anything was read or fetched."""

    def open(self) -> Rows:
        """Fetch what is not there yet.

        Raises:
            DataError: there is no such data, or it cannot be read.
        """


@attrs.frozen(kw_only=True)
class TableSource:
    """A dataset that the package ``datasets`` reads.

    Attributes:
        name: on the hub, a folder, a file, one of ``LOCAL_FORMATS``, or a URI: of a file, or of
            what has a file named as the split.
        split: of it.
        options: of ``datasets.load_dataset``.
        safe: read files of harmless formats only.
    """

    name: str
    split: str
    options: Mapping[str, Any]
    safe: bool

    def open(self) -> "TableRows":
        """See ``RowSource``."""
        from datasets import Dataset, load_dataset

        split, options = self.split, dict(self.options)
        name = self.name
        local = Path(name).expanduser()
        is_file = local.suffix in FORMATS and local.is_file()
        if is_uri(name) or is_file:
            path = local if is_file else find_table(name, split)
            split = split.replace("-", "_")  # datasets takes no dashes
            name = FORMATS[path.suffix]
            options = {key: value for key, value in options.items() if key != "revision"}
            options["data_files"] = {split: str(path)}
        elif options.get("data_files"):
            options["data_files"] = _fetched(options["data_files"])
        files = list(json_files(options.get("data_files") or ()))
        for path in files:
            if not path.stat().st_size:
                raise DataError(f"{path}: has no rows")
        named = functools.partial(self._named, files)
        with named(), _quietly():
            loaded = load_dataset(self._place(name), split=split, **options)
        if not isinstance(loaded, Dataset):
            raise DataError(
                f"hf_kwargs: {self.name!r} gave a {type(loaded).__name__} instead of a table; "
                "leave out streaming"
            )
        return TableRows(loaded, f"{self.name}:{self.split}", named=named)

    def _place(self, name: str) -> str:
        """Return what ``datasets`` is given; under ``safe`` only after a look at the files."""
        folder = Path(name).expanduser()
        if name in LOCAL_FORMATS:
            return name
        if not self.safe:
            return str(folder) if folder.exists() else self.name
        if not folder.exists():
            from huggingface_hub import snapshot_download

            patterns = [f"*{ending}" for ending in ENDINGS]
            revision = self.options.get("revision")
            folder = Path(
                snapshot_download(
                    self.name, repo_type="dataset", allow_patterns=patterns, revision=revision
                )
            )
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in files:
            if path.suffix not in _HARMLESS and path.name not in _HARMLESS:
                raise DataError(
                    f"safe_load: {path} is none of {', '.join(ENDINGS)}; remove it, or set "
                    "safe_load: false"
                )
        return str(folder)

    @contextmanager
    def _named(self, files: Sequence[Path]) -> Iterator[None]:
        """Say which dataset a library's error is about, and which line of which JSON file."""
        from datasets.exceptions import DatasetsError
        from huggingface_hub.errors import HfHubHTTPError

        # Its base is the HTTP library's own error, whichever library this release is built on.
        network_error: type[Exception] = HfHubHTTPError.__bases__[0]
        try:
            yield
        except FoundryError:
            raise
        except (
            OSError, ValueError, TypeError, ImportError, StopIteration,
            DatasetsError, network_error,
        ) as error:  # fmt: skip
            if (fault := find_fault(files)) is not None:
                raise DataError(fault) from error
            reason: BaseException = error
            while reason.__cause__ is not None:
                reason = reason.__cause__  # "an error occurred while generating" says nothing
            text = next((line for line in str(reason).splitlines() if line.strip()), repr(reason))
            raise DataError(
                f"dataset hf_name {self.name!r}, split {self.split!r}: "
                f"{textwrap.shorten(text, 300)}; check the name, the split, hf_kwargs and the "
                "network"
            ) from error


class TableRows:
    """Rows of an Arrow table that is mapped from the disk."""

    def __init__(self, table: "Dataset", name: str, *, named: Any) -> None:  # noqa: ANN401
        self._table = table
        self._name = name
        self._named = named

    def __len__(self) -> int:
        return len(self._table)

    def identity(self) -> dict[str, Any]:
        """See ``Rows``: digests of the Arrow files, and the rows of them that are in."""
        files = [_sha256(Path(file["filename"])) for file in self._table.cache_files]
        return {"arrow": files, "rows": len(self._table), "split": str(self._table.split)}

    def read(self, start: int) -> Iterator[Row]:
        """See ``Rows``."""
        table = self._table.select(range(start, len(self._table)))
        with self._named():
            for batch in table.iter(batch_size=1000):
                columns = list(batch)
                for values in zip(*batch.values(), strict=True):
                    yield dict(zip(columns, values, strict=True))

    def chat_template(self) -> str | None:
        """See ``Rows``: a table has text."""
        return None

    def place(self, number: int) -> str:
        """See ``Rows``."""
        return f"{self._name} row {number}"

    def close(self) -> None:
        """See ``Rows``."""


@attrs.frozen(kw_only=True)
class ShardSource:
    """One stream of MDS shards, local or fetched.

    Attributes:
        stream: not opened yet.
    """

    stream: "VerifiedStream"

    def open(self) -> "ShardRows":
        """See ``RowSource``."""
        from foundry_sdk.data import shared_memory

        stream = self.stream
        if stream.remote is None:
            stream.open()
            return ShardRows(stream)
        lock = shared_memory.CacheLock(stream.folder, what=f"stream {stream.name!r}")
        try:
            stream.fetch_index()
            stream.open()
        except DataError:
            lock.close()
            raise
        return ShardRows(stream, lock)


class ShardRows:
    """Rows of MDS shards, each shard checked before its first row is read."""

    def __init__(self, stream: "VerifiedStream", lock: Any = None) -> None:  # noqa: ANN401
        self._stream = stream
        self._lock = lock

    def __len__(self) -> int:
        return int(self._stream.index.samples)

    def identity(self) -> dict[str, Any]:
        """See ``Rows``: the index names each shard's digest, or size at least."""
        return {"index": _sha256(self._stream.index.path)}

    def read(self, start: int) -> Iterator[Row]:
        """See ``Rows``."""
        from foundry_sdk.data.mds import import_streaming
        from foundry_sdk.data.verified_stream import DAMAGED_DATA

        stream = self._stream
        alone = import_streaming().base.world.World(1, 1, 1, 0)
        number = 0
        for shard in stream.get_shards(alone, False):
            samples = int(shard.samples)
            if number + samples > start:
                stream.prepare_shard(shard)
                stream.check(stream.raw_file(shard.raw_data.basename), fetch_again=True)
            for index in range(max(0, start - number), samples):
                try:
                    row = shard[index]
                except DAMAGED_DATA as error:
                    raise DataError(
                        f"{self.place(number + index)} cannot be read ({error}); foundry data "
                        "inspect --verify checks the folder"
                    ) from error
                yield row
            number += samples

    def chat_template(self) -> str | None:
        """See ``Rows``: the card says so."""
        card = self._stream.card
        return None if card is None else card.options.get("chat_template")

    def place(self, number: int) -> str:
        """See ``Rows``."""
        return f"stream {self._stream.name!r} ({self._stream.folder}) sample {number}"

    def close(self) -> None:
        """See ``Rows``: others may download into the folder again."""
        if self._lock is not None:
            self._lock.close()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the library from printing an error that is about to be raised, with its place."""
    logger = logging.getLogger("datasets.packaged_modules.json.json")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _fetched(files: Any) -> Any:  # noqa: ANN401 - a file, several, or some by split
    """Return ``data_files`` with local copies in place of URIs."""
    if isinstance(files, str):
        return str(fetch(files)) if is_uri(files) else files
    if isinstance(files, Mapping):
        return {split: _fetched(each) for split, each in files.items()}
    return [_fetched(each) for each in files]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
