"""A folder of shards in an S3 bucket: every file's digest is verified, the index comes last."""

import base64
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk.data.card import CARD_NAME, DataCard
from foundry_sdk.data.mds import INDEX_NAME
from foundry_sdk.errors import DataError, RunError

_STREAMS: Final = 8


@attrs.frozen(kw_only=True, slots=False)
class S3Folder:
    """All objects below ``prefix``.

    Credentials and region are those of boto3; the endpoint too, or ``S3_ENDPOINT_URL``, which
    mosaicml-streaming reads.
    """

    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        """The folder as the user writes it."""
        return f"s3://{self.bucket}/{self.prefix}"

    def staging(self) -> Path:
        """Return the local folder for the data until it is uploaded: always the same one.

        Raises:
            DataError: somebody else has made the folder of this user's data, which all can guess.
        """
        own = Path(tempfile.gettempdir()) / f"foundry-{os.getuid()}"
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise DataError(
                f"{own}: others can write there or read it, so nothing is converted in it; remove "
                "it, or set TMPDIR to a folder of your own"
            )
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        return own / f"convert-{name}" / "data"

    def clear(self, staging: Path) -> None:
        """Delete the local copy."""
        shutil.rmtree(staging.parent, ignore_errors=True)
        with suppress(OSError):  # another conversion is in it
            staging.parent.parent.rmdir()

    def names(self) -> list[str]:
        """Return the names of all objects of the folder."""
        start = f"{self.prefix}/" if self.prefix else ""
        with self._asking("list"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=start
            )
            return [
                str(item["Key"]).removeprefix(start)
                for page in pages
                for item in page.get("Contents", ())
            ]

    def card(self) -> DataCard | None:
        """Return the card of whole data; None where there is no index."""
        names = self.names()
        if INDEX_NAME not in names:
            return None
        if CARD_NAME not in names:
            raise DataError(f"{self.url}: holds data of another tool; give another place")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CARD_NAME).write_bytes(self._get(CARD_NAME))
            return DataCard.read(folder)

    def about(self, name: str) -> dict[str, Any] | None:
        """Return the size and the entity tag of an object; None where there is none."""
        from botocore.exceptions import ClientError

        with self._asking(f"look at {name} of"):
            try:
                head = self._client.head_object(Bucket=self.bucket, Key=self._key(name))
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in {"404", "NoSuchKey"}:
                    return None
                raise
        return {"bytes": int(head["ContentLength"]), "etag": str(head["ETag"])}

    def download(self, name: str, path: Path) -> None:
        """Write an object to ``path``; the checksum that the store has of it is verified."""
        with self._asking(f"fetch {name} of"):
            answer = self._client.get_object(
                Bucket=self.bucket, Key=self._key(name), ChecksumMode="ENABLED"
            )
            with path.open("wb") as file:
                for block in answer["Body"].iter_chunks(1 << 20):
                    file.write(block)

    def upload(self, folder: Path, card: DataCard) -> None:
        """Upload the shards and the card, then the index; delete what else is there.

        Raises:
            RunError: the store refuses a file, or has not what was sent.
        """
        there = set(self.names())
        if INDEX_NAME in there:
            self._delete(INDEX_NAME)  # from here on the old data is no longer whole
        with ThreadPoolExecutor(_STREAMS) as executor:
            list(executor.map(lambda name: self._upload(folder / name, there), card.shards))
        self._upload(folder / CARD_NAME, there)
        for stray in sorted(there - {*card.shards, CARD_NAME, INDEX_NAME}):
            self._delete(stray)
        self._upload(folder / INDEX_NAME, set())

    def _upload(self, path: Path, there: set[str]) -> None:
        data = path.read_bytes()
        if path.name in there and self._has(path.name, data):
            return
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        with self._asking(f"upload {path.name} to"):
            self._client.put_object(
                Bucket=self.bucket, Key=self._key(path.name), Body=data, ChecksumSHA256=digest
            )
        if not self._has(path.name, data):
            raise RunError(
                f"{self.url}/{path.name}: the store does not have what was uploaded; --resume "
                "tries again"
            )

    def _has(self, name: str, data: bytes) -> bool:
        """Compare an object with ``data``, by the store's own sha256 or by reading it back."""
        with self._asking(f"verify {name} in"):
            head = self._client.head_object(
                Bucket=self.bucket, Key=self._key(name), ChecksumMode="ENABLED"
            )
        if head["ContentLength"] != len(data):
            return False
        digest = hashlib.sha256(data).digest()
        known = head.get("ChecksumSHA256")
        if known is not None:
            return bool(known == base64.b64encode(digest).decode())
        return hashlib.sha256(self._get(name)).digest() == digest

    def _get(self, name: str) -> bytes:
        with self._asking(f"read {name} of"):
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(name))
            data: bytes = answer["Body"].read()
        return data

    def _delete(self, name: str) -> None:
        with self._asking(f"delete {name} of"):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @cached_property
    def _client(self) -> Any:  # noqa: ANN401 - boto3 makes its classes when it runs
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise DataError(f"{self.url}: needs boto3; pip install 'foundry-sdk[s3]'") from error
        with self._asking("reach"):
            return boto3.client(
                "s3",
                endpoint_url=os.environ.get("S3_ENDPOINT_URL"),
                config=Config(
                    retries={"mode": "standard", "max_attempts": 5},
                    connect_timeout=10,
                    max_pool_connections=2 * _STREAMS,
                ),
            )

    @contextmanager
    def _asking(self, action: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise RunError(
                f"cannot {action} {self.url}: {error}; check the bucket, the credentials and the "
                "network; what is converted is kept: --resume goes on"
            ) from error
