"""One folder of MDS shards, local or remote, of which nothing is read before it is checked."""

import os
import sys
import zlib
from pathlib import Path
from typing import Any, Final

from foundry_sdk.data.card import CARD_NAME, DataCard
from foundry_sdk.data.index import INDEX_NAME, MDSIndex, ShardFile, missing_index, read_index
from foundry_sdk.data.integrity import OFF, Problem, check_file, expected_digest
from foundry_sdk.data.mds import import_streaming, write_file
from foundry_sdk.data.unpacking import unpack
from foundry_sdk.errors import DataError
from foundry_sdk.faultpoints import reach

_Stream: Any = import_streaming().Stream
DAMAGED_DATA: Final[tuple[type[Exception], ...]] = (
    OSError, RuntimeError, ValueError, IndexError, KeyError, TypeError, EOFError, zlib.error,
)  # fmt: skip
"""What reading a shard may raise whose bytes are not what they were."""


class VerifiedStream(_Stream):  # type: ignore[misc]  # untyped library
    """One folder of MDS shards, local or fetched from elsewhere, whose files are checked.

    Attributes:
        name: what the spec calls it.
        folder: where its files lie, or will.
        index, card: what the folder says of itself; there once ``open`` was called.
    """

    index: MDSIndex
    card: DataCard | None

    def __init__(self, *, name: str, validate_hash: str | None, **options: Any) -> None:  # noqa: ANN401
        """Describe the stream; ``options`` are those of ``streaming.Stream``."""
        super().__init__(**options)
        self.name = name
        self.digest = validate_hash
        self.folder = Path(self.local) / self.split
        self._files: dict[str, ShardFile] = {}

    def fetch_index(self) -> None:
        """Bring index and card from the remote, where they are not there yet.

        Raises:
            DataError: there is no index at the remote, or it cannot be reached.
        """
        if self.remote is None:
            return
        if not (self.folder / INDEX_NAME).exists():
            self._fetch(INDEX_NAME)
        if not (self.folder / CARD_NAME).exists():
            self._fetch(CARD_NAME, optional=True)

    def open(self) -> None:
        """Read and check index and card; of local data also that every file is there.

        Raises:
            DataError: the folder, its index or its card is missing or broken, or a shard is
                missing or has another size than the index says.
        """
        self.index, self.card = read_index(self.folder / INDEX_NAME), DataCard.read(self.folder)
        if not self.index.samples:
            raise DataError(f"{self.index.path}: the data has no samples; convert it again")
        if self.digest is not None:
            expected_digest(self.index.shards[0].stored, self.card, self.digest)
        for shard in self.index.shards:
            self._files[shard.raw.basename] = shard.raw
            if shard.zip is not None:
                self._files[shard.raw.basename + "\0zip"] = shard.zip
            if self.remote is None:
                problem = check_file(self.folder / shard.stored.basename, shard.stored, None)
                unpacked = self.folder / shard.raw.basename
                if problem is not None and check_file(unpacked, shard.raw, None) is not None:
                    raise DataError(f"{problem}; convert the data again, or copy the file again")

    def get_shards(self, world: Any, allow_unsafe_types: bool) -> list[Any]:  # noqa: ANN401
        """Return the shards' readers, each of a file that can be there."""
        shards: list[Any] = super().get_shards(world, allow_unsafe_types)
        for shard in shards:
            raw, packed = shard.file_pairs[0]
            # A cache that kept only unpacked shards is whole, though the index names packed ones.
            if self.remote is None and packed and not (self.folder / packed.basename).exists():
                shard.file_pairs = [(raw, None)]
                shard.compression = None
        return shards

    def prepare_shard(self, shard: Any) -> int:  # noqa: ANN401
        """Fetch, check and unpack a shard that is not there.

        Returns:
            Bytes by which the cache grew.

        Raises:
            DataError: it cannot be fetched, or is damaged even when fetched twice.
        """
        raw, packed = shard.file_pairs[0]
        if (self.folder / raw.basename).is_file():
            return int(super().prepare_shard(shard))
        file = self._files[raw.basename + ("\0zip" if packed else "")]
        path = self.folder / file.basename
        grown = 0
        if not path.is_file():
            self._fetch(file.basename)
            grown = file.bytes
        self.check(file, fetch_again=True)
        try:
            grown += int(super().prepare_shard(shard))
        except _unpacking_errors() as error:
            advice = (
                "; to keep this folder as it is, name it remote: and give a local: to unpack into"
                if self.remote is None and isinstance(error, OSError)
                else ""
            )
            raise DataError(f"{path}: the shard cannot be unpacked ({error}){advice}") from error
        self.check(self._files[raw.basename], fetch_again=False)
        return grown

    def _decompress_shard_part(
        self, _: object, zip_filename: str, raw_filename: str, compression: str | None
    ) -> None:
        """Unpack a shard whose digest was compared, into no more than its index says."""
        raw = Path(raw_filename)
        if compression is None:
            raise ValueError("a packed shard without a compression")
        packed = Path(zip_filename).read_bytes()
        write_file(raw, unpack(compression, packed, self._files[raw.name].bytes))
        if not self.safe_keep_zip:
            os.remove(zip_filename)

    def check(self, file: ShardFile, *, fetch_again: bool) -> None:
        """Compare a file with its digest; only the process that prepares its shard does this.

        Raises:
            DataError: it is damaged, and so is a second copy, or there is none to be had.
        """
        path = self.folder / file.basename
        problem = self.problem(file)
        if problem is not None and self.remote is not None:
            path.unlink(missing_ok=True)
            if fetch_again:
                self._fetch(file.basename)
                problem = self.problem(file)
                if problem is not None:
                    path.unlink(missing_ok=True)
        if problem is not None:
            raise self.damaged(problem, fetched=fetch_again)

    def problem(self, file: ShardFile) -> Problem | None:
        """Return what is wrong with a file; None = it is whole."""
        expected = expected_digest(file, self.card, self.digest) if self._has(file) else None
        return check_file(self.folder / file.basename, file, expected)

    def damaged(self, problem: Problem, *, fetched: bool = False) -> DataError:
        """Return the error of a file that is wrong and stays so."""
        source = f" (fetched twice from {self.remote})" if self.remote and fetched else ""
        return DataError(
            f"stream {self.name!r}: {problem}{source}; convert the data again or bring a whole "
            "copy of this shard"
        )

    def raw_file(self, basename: str) -> ShardFile:
        """Return what the index says of an unpacked shard."""
        return self._files[basename]

    def _has(self, file: ShardFile) -> bool:
        """Tell whether the digest asked for exists: packed shards may have it in one form only."""
        return self.digest is None or self.digest == OFF or self.digest in file.hashes

    def _fetch(self, basename: str, *, optional: bool = False) -> None:
        partial = self.folder / f"{basename}.fetching"
        partial.unlink(missing_ok=True)
        try:
            reach("download.fetch")
            if optional:
                remote = os.path.join(self.remote, self.split, basename)  # a URL
                self._downloader.download(remote, str(partial), self.download_timeout)
            else:
                self._download_file(basename, partial.name)
        except FileNotFoundError as error:
            if optional:
                return
            folder = Path(self.remote) / self.split
            what = missing_index(folder) if basename == INDEX_NAME else f"{error}"
            raise DataError(f"stream {self.name!r}: {what}") from error
        except _transport_errors() as error:
            if optional and _is_absent(error):
                return
            raise DataError(
                f"stream {self.name!r}: {basename} could not be fetched from {self.remote} "
                f"({type(error).__name__}: {error}); check the address, the network and the "
                "credentials"
            ) from error
        reach("download.rename")
        partial.replace(self.folder / basename)


def _transport_errors() -> tuple[type[Exception], ...]:
    """Return what a download may raise: Python's own, and those of the client in use."""
    found: list[type[Exception]] = [OSError, ValueError, RuntimeError, ImportError]
    for module, name in (
        ("botocore.exceptions", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("boto3.exceptions", "Boto3Error"),
        ("google.api_core.exceptions", "GoogleAPIError"),
        ("azure.core.exceptions", "AzureError"),
        ("oci.exceptions", "ServiceError"),
        ("paramiko.ssh_exception", "SSHException"),
    ):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _is_absent(error: BaseException) -> bool:
    """Tell "there is no such object" from a failure to reach it."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code in {"404", "403", "NoSuchKey"} or getattr(error, "code", None) == 404


def _unpacking_errors() -> tuple[type[Exception], ...]:
    names = (("zstd", "Error"), ("brotli", "error"), ("snappy", "UncompressError"))
    found = [getattr(sys.modules.get(module), name, None) for module, name in names]
    return (*DAMAGED_DATA, *(error for error in found if isinstance(error, type)))
