"""Folders of an object store: the few operations that checkpoints need, each tried once."""

import hashlib
import re
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, Protocol

import attrs

from foundry_sdk.checkpoint.files import FileEntry
from foundry_sdk.errors import CheckpointError, RemoteStoreError
from foundry_sdk.faultpoints import reach

CHUNK: Final = 1 << 20
_SECRET: Final = re.compile(r"(?<=://)[^\s/@'\"]+@|(?<=[^\s])\?[^\s'\"]+")
_SHOWN: Final = 300


class PassingError(RemoteStoreError):
    """A request failed that may well succeed when it is made again."""


def is_uri(place: str | Path) -> bool:
    """Tell ``s3://bucket/runs`` from a folder of this machine."""
    return "://" in str(place)


def shown(text: str) -> str:
    """Return ``text`` without what is secret in the URIs in it: user part and query."""
    return _SECRET.sub("", text)


class ObjectFolder(Protocol):
    """All objects below one prefix, by their names relative to it.

    Every method raises ``PassingError`` where trying again may help, ``RemoteStoreError`` where
    it will not, and ``CheckpointError`` where an object is missing.
    """

    @property
    def url(self) -> str:
        """The folder as messages show it."""

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return the sizes of all objects whose names begin with ``below``."""

    def put(self, name: str, content: Path | bytes, entry: FileEntry) -> None:
        """Store a file or bytes of this size and digest."""

    def get(self, name: str, path: Path) -> None:
        """Write an object to the file ``path``."""

    def read(self, name: str) -> bytes:
        """Return an object's content."""

    def entry(self, name: str) -> FileEntry | None:
        """Return size and digest of what the store has; None where there is no such object."""

    def delete(self, name: str) -> None:
        """Delete an object; none of that name is no error."""


def open_folder(uri: str, *, seconds: float) -> ObjectFolder:
    """Return the folder that ``uri`` names; nothing is asked of the store yet.

    Args:
        uri: ``s3://bucket/prefix`` (credentials and endpoint are those of boto3), or what a
            package of fsspec knows.
        seconds: to wait for a server's answer to begin or to go on, where that can be told.

    Raises:
        CheckpointError: no such address, or the package for it is missing.
    """
    if uri.startswith("s3://"):
        from foundry_sdk.checkpoint.bucket import S3Objects

        return S3Objects.of(uri, seconds=seconds)
    return FsspecObjects.of(uri)


@attrs.frozen(slots=False)
class FsspecObjects:
    """A folder that a package of fsspec opens.

    fsspec has no digest that all its stores agree on, so what was stored is read back to be
    compared.
    """

    _uri: str = attrs.field(repr=False)

    @classmethod
    def of(cls, uri: str) -> "FsspecObjects":
        """Find the package for ``uri``.

        Raises:
            CheckpointError: there is none.
        """
        import fsspec

        scheme = uri.partition("://")[0].partition("::")[0]
        try:
            if not scheme:
                raise ValueError("it names no kind of store")
            fsspec.get_filesystem_class(scheme)
        except (ValueError, ImportError) as error:
            raise CheckpointError(
                f"{shown(uri)}: no folder of checkpoints can be there ({shown(str(error))}); use a "
                "folder, s3://bucket/prefix, or an address that an installed package of fsspec "
                "knows"
            ) from error
        return cls(uri)

    @property
    def url(self) -> str:
        """See ``ObjectFolder``."""
        return shown(self._uri).rstrip("/")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system and the folder's path in it; some packages connect here."""
        import fsspec

        system, root = fsspec.core.url_to_fs(self._uri)
        return system, root.rstrip("/")

    @property
    def _system(self) -> Any:  # noqa: ANN401 - each package has a class of its own
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    def sizes(self, below: str = "") -> dict[str, int]:
        """See ``ObjectFolder``."""
        with self._asking("list", below):
            self._system.invalidate_cache()
            try:
                found = self._system.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
            start = len(self._root) + 1
            names = {path[start:]: int(about["size"]) for path, about in found.items()}
        return {name: size for name, size in names.items() if name.startswith(below)}

    def put(self, name: str, content: Path | bytes, entry: FileEntry) -> None:  # noqa: ARG002
        """See ``ObjectFolder``; what arrived is compared by whoever asks for ``entry``."""
        with self._asking("store", name):
            reach("remote.put")
            path = self._path(name)
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            with self._system.open(path, "wb") as target:
                if isinstance(content, bytes):
                    target.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, target, CHUNK)

    def get(self, name: str, path: Path) -> None:
        """See ``ObjectFolder``."""
        with self._asking("fetch", name):
            reach("remote.get")
            try:
                with self._system.open(self._path(name), "rb") as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target, CHUNK)
            except FileNotFoundError:
                raise missing(self.url, name) from None

    def read(self, name: str) -> bytes:
        """See ``ObjectFolder``."""
        with self._asking("read", name):
            reach("remote.read")
            try:
                content: bytes = self._system.cat_file(self._path(name))
            except FileNotFoundError:
                raise missing(self.url, name) from None
        return content

    def entry(self, name: str) -> FileEntry | None:
        """See ``ObjectFolder``."""
        with self._asking("verify", name):
            digest, size = hashlib.sha256(), 0
            try:
                with self._system.open(self._path(name), "rb") as source:
                    while piece := source.read(CHUNK):
                        digest.update(piece)
                        size += len(piece)
            except FileNotFoundError:
                return None
        return FileEntry(size, digest.hexdigest())

    def delete(self, name: str) -> None:
        """See ``ObjectFolder``."""
        with self._asking("delete", name):
            reach("remote.delete")
            try:
                self._system.rm_file(self._path(name))
            except FileNotFoundError:
                return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _asking(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except (PermissionError, NotImplementedError, ImportError, ValueError, TypeError) as error:
            raise RemoteStoreError(told(action, self.url, name, error)) from error
        except (OSError, HTTPException, RuntimeError) as error:
            raise PassingError(told(action, self.url, name, error)) from error
        except Exception as error:  # each package of fsspec has errors of its own
            raise PassingError(told(action, self.url, name, error)) from error


def told(action: str, url: str, name: str, error: Exception, reason: str | None = None) -> str:
    """Return the message for a request that failed; ``reason`` says it better than ``error``."""
    reason = textwrap.shorten(shown(reason or f"{type(error).__name__}: {error}"), _SHOWN)
    return f"cannot {action} {f'{name} of ' if name else ''}{url}: {reason}"


def missing(url: str, name: str) -> CheckpointError:
    """Return the error for an object that is not there."""
    return CheckpointError(f"{url}/{name}: missing")
