"""A folder in an S3 bucket, through boto3, with the store's own SHA-256 of every object."""

import base64
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk.checkpoint.files import FileEntry
from foundry_sdk.checkpoint.objects import CHUNK, PassingError, missing, told
from foundry_sdk.errors import CheckpointError, RemoteStoreError
from foundry_sdk.faultpoints import reach

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_ONE_REQUEST: Final = 4 * 2**30
"""Largest object that is stored by one request; S3 takes 5 GiB."""
_PART: Final = 128 * 2**20
_ABSENT: Final = frozenset({"404", "NoSuchKey"})
_PASSING: Final = frozenset(
    {
        *("RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "InternalError"),
        *("ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded", "BadDigest"),
        *(
            "ServiceUnavailable",
            "OperationAborted",
            "IncompleteBody",
            "XAmzContentChecksumMismatch",
        ),
    }
)
_MAKING_CLIENTS: Final = threading.Lock()


@attrs.frozen(slots=False)
class S3Objects:
    """See ``ObjectFolder``. ``seconds``: to wait for an answer to begin or to go on."""

    bucket: str
    prefix: str
    seconds: float

    @classmethod
    def of(cls, uri: str, *, seconds: float) -> "S3Objects":
        """Read ``s3://bucket/prefix``.

        Raises:
            CheckpointError: it is none, or boto3 is missing.
        """
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if _BUCKET.fullmatch(bucket) is None or "?" in prefix:
            raise CheckpointError(
                "an s3:// address of checkpoints is s3://bucket/prefix, with nothing else in it; "
                "credentials, region and endpoint come from the environment or boto3's files"
            )
        try:
            import boto3  # noqa: F401 - so that its absence is told before anything slow
        except ImportError as error:
            raise CheckpointError(f"{uri}: needs boto3; pip install 'foundry-sdk[s3]'") from error
        return cls(bucket, "/".join(part for part in prefix.split("/") if part), seconds)

    @property
    def url(self) -> str:
        """See ``ObjectFolder``."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def sizes(self, below: str = "") -> dict[str, int]:
        """See ``ObjectFolder``."""
        start = f"{self.prefix}/" if self.prefix else ""
        with self._asking("list", below):
            reach("remote.list")
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=start + below
            )
            return {
                str(item["Key"]).removeprefix(start): int(item["Size"])
                for page in pages
                for item in page.get("Contents", ())
            }

    def put(self, name: str, content: Path | bytes, entry: FileEntry) -> None:
        """See ``ObjectFolder``; the store refuses what does not arrive with this digest."""
        with self._asking("store", name):
            reach("remote.put")
            if entry.size > _ONE_REQUEST and isinstance(content, Path):
                self._put_parts(name, content)
                return
            digest = base64.b64encode(bytes.fromhex(entry.sha256)).decode()
            request = {
                "Bucket": self.bucket,
                "Key": self._key(name),
                "ChecksumAlgorithm": "SHA256",
                "ChecksumSHA256": digest,
            }
            if isinstance(content, bytes):
                self._client.put_object(Body=content, **request)
            else:
                with content.open("rb") as file:
                    self._client.put_object(Body=file, **request)

    def get(self, name: str, path: Path) -> None:
        """See ``ObjectFolder``."""
        with self._asking("fetch", name), path.open("wb") as file:
            reach("remote.get")
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(name))
            for piece in answer["Body"].iter_chunks(CHUNK):
                file.write(piece)

    def read(self, name: str) -> bytes:
        """See ``ObjectFolder``."""
        with self._asking("read", name):
            reach("remote.read")
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(name))
            content: bytes = answer["Body"].read()
        return content

    def entry(self, name: str) -> FileEntry | None:
        """See ``ObjectFolder``; an object that the store has no plain SHA-256 of is read."""
        from botocore.exceptions import ClientError

        with self._asking("verify", name):
            reach("remote.verify")
            try:
                head = self._client.head_object(
                    Bucket=self.bucket, Key=self._key(name), ChecksumMode="ENABLED"
                )
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise
            known = head.get("ChecksumSHA256")
            in_parts = "-" in str(known) or "-" in head["ETag"]  # then of the parts' digests
            if known is not None and not in_parts:
                return FileEntry(int(head["ContentLength"]), base64.b64decode(known).hex())
            digest, size = hashlib.sha256(), 0
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(name))
            for piece in answer["Body"].iter_chunks(CHUNK):
                digest.update(piece)
                size += len(piece)
            return FileEntry(size, digest.hexdigest())

    def delete(self, name: str) -> None:
        """See ``ObjectFolder``."""
        with self._asking("delete", name):
            reach("remote.delete")
            self._client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def _put_parts(self, name: str, path: Path) -> None:
        target = {"Bucket": self.bucket, "Key": self._key(name)}
        begun = self._client.create_multipart_upload(ChecksumAlgorithm="SHA256", **target)
        target["UploadId"] = begun["UploadId"]
        try:
            parts: list[dict[str, Any]] = []
            with path.open("rb") as file:
                while piece := file.read(_PART):
                    number = len(parts) + 1
                    digest = base64.b64encode(hashlib.sha256(piece).digest()).decode()
                    answer = self._client.upload_part(
                        PartNumber=number, Body=piece, ChecksumSHA256=digest, **target
                    )
                    parts.append(
                        {
                            "PartNumber": number,
                            "ETag": answer["ETag"],
                            "ChecksumSHA256": digest,
                        }
                    )
            self._client.complete_multipart_upload(MultipartUpload={"Parts": parts}, **target)
        except BaseException:
            self._client.abort_multipart_upload(**target)
            raise

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @cached_property
    def _client(self) -> Any:  # noqa: ANN401 - boto3 makes its classes when it runs
        import boto3
        from botocore.config import Config

        # Making clients is not thread-safe, using one is. botocore's own retries would draw from
        # Python's global random generator, whose state belongs to the run: ours don't.
        with _MAKING_CLIENTS:
            return boto3.client(
                "s3",
                endpoint_url=os.environ.get("S3_ENDPOINT_URL"),
                config=Config(
                    retries={"total_max_attempts": 1},
                    connect_timeout=min(10.0, self.seconds),
                    read_timeout=self.seconds,
                    max_pool_connections=32,
                ),
            )

    @contextmanager
    def _asking(self, action: str, name: str) -> Iterator[None]:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            ParamValidationError,
            PartialCredentialsError,
        )

        try:
            yield
        except ClientError as error:
            if _code(error) in _ABSENT:
                raise missing(self.url, name) from error
            reason = f"{_code(error)}: {error.response.get('Error', {}).get('Message')}"
            raise _kind(error)(told(action, self.url, name, error, reason)) from error
        except (NoCredentialsError, PartialCredentialsError, ParamValidationError) as error:
            raise RemoteStoreError(told(action, self.url, name, error)) from error
        except (BotoCoreError, OSError) as error:
            raise PassingError(told(action, self.url, name, error)) from error


def _code(error: Any) -> str:  # noqa: ANN401 - botocore has no types
    return str(error.response.get("Error", {}).get("Code"))


def _kind(error: Any) -> type[RemoteStoreError]:  # noqa: ANN401
    """Tell what may pass (a busy or failing server) from what will not (credentials, no bucket)."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    passing = status >= 500 or status == 429 or _code(error) in _PASSING
    return PassingError if passing else RemoteStoreError
