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


def destination(out_root: str | Path, split: str, *, keep: str | Path | None = None) -> Destination:
    """Return where ``split`` of ``out_root`` goes; "" = ``out_root`` itself.

    Args:
        out_root: local folder, or ``s3://bucket/prefix``.
        split: name of the folder in it.
        keep: local folder where a copy of what goes to a bucket stays.

    Raises:
        DataError: neither a path nor an s3 URL, or ``split`` is no name of a folder.
    """
    if split in {".", ".."} or re.search(r"[/\\\0]", split):
        raise DataError(f"split: {split!r} is no name of a folder; give one without / and ..")
    scheme, separator, rest = str(out_root).partition("://")
    if not separator:
        if keep is not None:
            raise DataError(
                f"local: a copy beside out_root is for an out_root of a bucket, and {out_root} is "
                "local already; leave it out"
            )
        return LocalFolder(Path(out_root).expanduser().resolve() / split)
    if scheme != "s3":
        raise DataError(
            f"out_root: cannot write to {scheme}://; give a local folder or s3://bucket/prefix"
        )
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise DataError(f"out_root: {str(out_root)!r} names no bucket; give s3://bucket/prefix")
    parts = [part for part in [*prefix.split("/"), split] if part]
    local = None if keep is None else Path(keep).expanduser().resolve() / split
    return RemoteFolder(S3Folder(bucket=bucket, prefix="/".join(parts)), keep=local)


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
    """A prefix of a bucket; the data is made in a local folder and then uploaded.

    Attributes:
        remote: the prefix.
        keep: the local folder; None = a temporary one.
    """

    remote: S3Folder
    keep: Path | None = None

    def require_free(self, *, resume: bool, overwrite: bool) -> None:
        """See ``Destination``."""
        if resume or overwrite:
            return
        if self.keep is not None:
            LocalFolder(self.keep).require_free(resume=resume, overwrite=overwrite)
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
        """See ``Destination``; a temporary copy is deleted once the upload is verified."""
        self.require_free(resume=job.resume, overwrite=job.overwrite)
        there = self.remote.card()
        done = there is not None and job.resume and conversion.made(there)
        if there is not None and done and self.keep is None:
            return there
        if there is not None and not done and not job.overwrite:
            raise DataError(
                f"{self.remote.url}: holds data of another conversion; give another place, or "
                "--overwrite to replace it"
            )
        staging = self.keep or self.remote.staging()
        card = conversion.run(staging, job)
        self.remote.upload(staging, card)
        if self.keep is None:
            self.remote.clear(staging)
        return card
