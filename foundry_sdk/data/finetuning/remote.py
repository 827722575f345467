"""Tables that lie elsewhere, fetched once: files of a bucket, of a web server, of any URI."""

import hashlib
import json
import logging
import os
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import attrs

from foundry_sdk.data.convert.s3 import S3Folder
from foundry_sdk.data.finetuning.store import alone
from foundry_sdk.data.mds import write_file
from foundry_sdk.errors import DataError, RunError

ENDINGS: Final = (".csv", ".json", ".jsonl", ".parquet")
"""Of files that are read, in the order in which they are looked for."""
_RECORD: Final = "fetched.json"
_CHUNK: Final = 1 << 20
_SECONDS: Final = 60
"""For an answer of a web server to begin or to go on."""
_log = logging.getLogger(__name__)


def is_uri(name: str) -> bool:
    """Tell ``s3://bucket/data`` from a folder or a name on the hub."""
    return "://" in name


def cache_root() -> Path:
    """Return where fetched files are kept."""
    return Path(os.environ.get("FOUNDRY_CACHE") or "~/.cache/foundry-sdk").expanduser() / "tables"


def find_table(uri: str, split: str) -> Path:
    """Return a local copy of the file ``uri``, or of ``uri/split`` with one of ``ENDINGS``.

    Raises:
        DataError: there is none, or it cannot be fetched.
    """
    if uri.endswith(ENDINGS):
        return fetch(uri)
    names = [f"{split}{ending}" for ending in ENDINGS]
    for name in names:
        url = f"{uri.rstrip('/')}/{name}"
        if _place(url).about() is not None:
            return fetch(url)
    raise DataError(
        f"hf_name {uri!r}: has none of {', '.join(names)}; check the address, the split and the "
        "credentials, or name the file itself"
    )


def fetch(url: str) -> Path:
    """Return a local copy of ``url``, downloaded where it is not there yet or has changed.

    A copy is used again only if the bytes are those that were downloaded.

    Raises:
        DataError: there is no such file, or it cannot be fetched whole.
    """
    place = _place(url)
    folder = cache_root() / hashlib.sha256(url.encode()).hexdigest()[:32]
    path = folder / url.rsplit("/", 1)[-1]
    about = place.about()
    if about is None:
        raise DataError(f"{url}: there is no such file")
    with alone(folder):
        record = folder / _RECORD
        if record.is_file() and path.is_file():
            known = json.loads(record.read_text())
            if known["about"] == about and known["sha256"] == _sha256(path):
                return path
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.fetching")
        place.download(partial)
        size = partial.stat().st_size
        if about["bytes"] not in (None, size):
            raise DataError(
                f"{url}: {size} bytes arrived of {about['bytes']}; the file is being written, or "
                "the connection was cut: try again"
            )
        digest = _sha256(partial)
        partial.replace(path)
        record_text = json.dumps({"url": url, "about": about, "sha256": digest}, indent=1)
        write_file(record, record_text.encode())
        _log.info("fetched %s, %d bytes (kept in %s)", url, size, folder)
    return path


class _Place(Protocol):
    """One file elsewhere."""

    def about(self) -> dict[str, Any] | None:
        """Return JSON values that differ where the content does, ``bytes`` among them.

        None = there is no such file.
        """

    def download(self, path: Path) -> None:
        """Write the content to ``path``."""


def _place(url: str) -> _Place:
    if url.startswith(("http://", "https://")):
        return _WebFile(url)
    if not url.startswith("s3://"):
        return _FsspecFile(url)
    bucket, _, key = url.removeprefix("s3://").partition("/")
    folder, _, name = key.rpartition("/")
    return _BucketFile(S3Folder(bucket=bucket, prefix=folder), name)


@attrs.frozen
class _BucketFile:
    """An object of an S3 bucket."""

    folder: S3Folder
    name: str

    def about(self) -> dict[str, Any] | None:
        """See ``_Place``."""
        with _as_data_error():
            return self.folder.about(self.name)

    def download(self, path: Path) -> None:
        """See ``_Place``."""
        with _as_data_error():
            self.folder.download(self.name, path)


@contextmanager
def _as_data_error() -> Iterator[None]:
    try:
        yield
    except RunError as error:
        raise DataError(str(error)) from error


@attrs.frozen
class _WebFile:
    """A file of a web server."""

    url: str

    def about(self) -> dict[str, Any] | None:
        """See ``_Place``."""
        with _asking(self.url):
            try:
                with self._answer("HEAD") as answer:
                    headers = answer.headers
            except HTTPError as error:
                if error.code in {404, 410}:
                    return None
                raise
        size = None if headers["Content-Encoding"] else headers["Content-Length"]
        marks = {name: headers[name] for name in ("ETag", "Last-Modified") if headers[name]}
        return {"bytes": None if size is None else int(size), **marks}

    def download(self, path: Path) -> None:
        """See ``_Place``."""
        with _asking(self.url), self._answer("GET") as answer, path.open("wb") as file:
            shutil.copyfileobj(answer, file, _CHUNK)

    def _answer(self, method: str) -> Any:  # noqa: ANN401 - typed by the scheme only
        request = Request(self.url, method=method)  # noqa: S310 - http and https only, see _place
        return urlopen(request, timeout=_SECONDS)  # noqa: S310


@attrs.frozen
class _FsspecFile:
    """A file that a package of ``fsspec`` can open."""

    url: str

    def about(self) -> dict[str, Any] | None:
        """See ``_Place``."""
        with _asking(self.url):
            system, path = self._opened()
            try:
                found = system.info(path)
            except FileNotFoundError:
                return None
        names = ("ETag", "etag", "md5Hash", "mtime", "last_modified", "created")
        marks = {name: str(found[name]) for name in names if found.get(name) is not None}
        return {"bytes": found.get("size"), **marks}

    def download(self, path: Path) -> None:
        """See ``_Place``."""
        with _asking(self.url):
            system, name = self._opened()
            with system.open(name, "rb") as source, path.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)

    def _opened(self) -> tuple[Any, str]:
        import fsspec

        system, path = fsspec.core.url_to_fs(self.url)
        return system, path


@contextmanager
def _asking(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, ImportError, HTTPException) as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        raise DataError(
            f"{url}: cannot be read ({reason}); check the address, the network, the credentials, "
            "and that fsspec's package for this kind of address is installed"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
