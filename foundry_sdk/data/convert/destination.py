"""Where converted data goes: a local folder, or a bucket."""

import re
from pathlib import Path
from typing import Protocol

import attrs

from foundry_sdk.data.card import DataCard
from foundry_sdk.data.convert.folder import finished
from foundry_sdk.data.convert.recipe import Recipe
from foundry_sdk.data.convert.run import Conversion, Job
from foundry_sdk.data.convert.s3 import S3Folder
from foundry_sdk.data.convert.units import Source
from foundry_sdk.errors import DataError


class Making(Protocol):
    """Something that makes the folder of a split."""

    def made(self, card: DataCard) -> bool:
        """Tell whether a card is that of this very conversion."""

    def run(self, final: Path, job: Job) -> DataCard:
        """Write the folder ``final`` and return its card."""


class Destination(Protocol):
    """A place for one split."""

    def require_free(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse at once what ``convert`` would refuse in any case.

        Raises:
            DataError: there is something, and neither option says what becomes of it.
        """

    def make(self, conversion: Making, job: Job) -> DataCard:
        """Write there what ``conversion`` makes."""

    def convert(self, source: Source, recipe: Recipe, *, split: str, job: Job) -> DataCard:
        """Write the split there; see ``Conversion.run``."""


def destination(out_root: str | Path, split: str) -> Destination:
    """Return where ``split`` of ``out_root`` goes; "" = ``out_root`` itself.

    Raises:
        DataError: neither a path nor an s3 URL, or ``split`` is no name of a folder.
    """
    if split in {".", ".."} or re.search(r"[/\\\0]", split):
        raise DataError(f"split: {split!r} is no name of a folder; give one without / and ..")
    scheme, separator, rest = str(out_root).partition("://")
    if not separator:
        return LocalFolder(Path(out_root).expanduser().resolve() / split)
    if scheme != "s3":
        raise DataError(
            f"out_root: cannot write to {scheme}://; give a local folder or s3://bucket/prefix"
        )
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise DataError(f"out_root: {str(out_root)!r} names no bucket; give s3://bucket/prefix")
    parts = [part for part in [*prefix.split("/"), split] if part]
    return RemoteFolder(S3Folder(bucket=bucket, prefix="/".join(parts)))


@attrs.frozen
class LocalFolder:
    """A folder of this machine."""

    path: Path

    def require_free(self, *, resume: bool, overwrite: bool) -> None:
        """See ``Destination``."""
        if not resume and not overwrite:
            finished(self.path, lambda _: False, resume=False, overwrite=False)

    def convert(self, source: Source, recipe: Recipe, *, split: str, job: Job) -> DataCard:
        """See ``Destination``."""
        self.require_free(resume=job.resume, overwrite=job.overwrite)
        return self.make(Conversion.of(source, recipe, split=split), job)

    def make(self, conversion: Making, job: Job) -> DataCard:
        """See ``Destination``."""
        self.require_free(resume=job.resume, overwrite=job.overwrite)
        return conversion.run(self.path, job)


@attrs.frozen
class RemoteFolder:
    """A prefix of a bucket; the data is made in a local folder and then uploaded."""

    remote: S3Folder

    def require_free(self, *, resume: bool, overwrite: bool) -> None:
        """See ``Destination``."""
        if resume or overwrite:
            return
        names = self.remote.names()
        if names:
            raise DataError(
                f"{self.remote.url}: not empty: it holds {', '.join(names[:3])}; give another "
                "place, --resume to finish the same conversion, or --overwrite to replace it"
            )

    def convert(self, source: Source, recipe: Recipe, *, split: str, job: Job) -> DataCard:
        """See ``Destination``."""
        self.require_free(resume=job.resume, overwrite=job.overwrite)
        return self.make(Conversion.of(source, recipe, split=split), job)

    def make(self, conversion: Making, job: Job) -> DataCard:
        """See ``Destination``; the local copy is deleted once the upload is verified."""
        self.require_free(resume=job.resume, overwrite=job.overwrite)
        there = self.remote.card()
        if there is not None and job.resume and conversion.made(there):
            return there
        if there is not None and not job.overwrite:
            raise DataError(
                f"{self.remote.url}: holds data of another conversion; give another place, or "
                "--overwrite to replace it"
            )
        staging = self.remote.staging()
        card = conversion.run(staging, job)
        self.remote.upload(staging, card)
        self.remote.clear(staging)
        return card
