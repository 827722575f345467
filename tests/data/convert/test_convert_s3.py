"""Conversion into a bucket of a local S3 server."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_sdk.data import DataCard, convert_json
from foundry_sdk.data.convert.s3 import S3Folder
from foundry_sdk.errors import DataError, RunError

boto3 = pytest.importorskip("boto3", reason="needs the s3 extra")
moto_server = pytest.importorskip("moto.server", reason="needs moto[server]")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    import tempfile

    monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="data")
    yield Bucket(client)
    for item in client.list_objects_v2(Bucket="data").get("Contents", ()):
        client.delete_object(Bucket="data", Key=item["Key"])


class Bucket:
    def __init__(self, client: Any) -> None:
        self.client = client

    def contents(self) -> dict[str, bytes]:
        listed = self.client.list_objects_v2(Bucket="data").get("Contents", ())
        return {
            item["Key"]: self.client.get_object(Bucket="data", Key=item["Key"])["Body"].read()
            for item in listed
        }


def local_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_bucket_holds_the_files_of_a_local_conversion(
    bucket: Bucket, lines: Path, tmp_path: Path, tokenizer_folder: str
) -> None:
    options: dict[str, Any] = {
        "path": lines,
        "concat_tokens": 64,
        "tokenizer": tokenizer_folder,
        "eos_text": "<|endoftext|>",
        "compression": "zstd",
        "size_limit": 30_000,
    }
    local = convert_json(out_root=tmp_path / "local", **options)
    remote = convert_json(out_root="s3://data/deep/prefix", **options)

    assert remote == local
    uploaded = {key.rpartition("/")[2]: data for key, data in bucket.contents().items()}
    assert uploaded == local_files(tmp_path / "local" / "train")
    assert set(bucket.contents()) == {f"deep/prefix/train/{name}" for name in uploaded}
    assert len(local.shards) > 3
    for name, digest in local.shards.items():
        assert hashlib.sha256(uploaded[name]).hexdigest() == digest
    assert list((tmp_path / "temporary").iterdir()) == []


def test_streaming_reads_what_was_uploaded(bucket: Bucket, lines: Path, tmp_path: Path) -> None:
    del bucket
    from foundry_sdk.data.mds import import_streaming

    card = convert_json(path=lines, out_root="s3://data", size_limit=30_000)
    dataset = import_streaming().StreamingDataset(
        remote="s3://data/train", local=str(tmp_path / "cache"), shuffle=False, batch_size=1
    )
    assert len([row["text"] for row in dataset]) == card.samples


def test_what_is_there_is_not_overwritten_unasked(bucket: Bucket, lines: Path) -> None:
    first = convert_json(path=lines, out_root="s3://data/x")
    before = bucket.contents()
    with pytest.raises(DataError, match=r"s3://data/x/train: not empty.*--overwrite"):
        convert_json(path=lines, out_root="s3://data/x")
    assert convert_json(path=lines, out_root="s3://data/x", resume=True) == first
    with pytest.raises(DataError, match="another conversion"):
        convert_json(path=lines, out_root="s3://data/x", resume=True, size_limit=30_000)
    assert bucket.contents() == before

    card = convert_json(path=lines, out_root="s3://data/x", overwrite=True, size_limit=30_000)
    assert set(bucket.contents()) == {
        f"x/train/{name}" for name in [*card.shards, "index.json", "card.json"]
    }


def test_an_upload_that_breaks_leaves_no_index_and_goes_on(
    bucket: Bucket, lines: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[str] = []
    upload = S3Folder._upload

    def fail_at_the_third(self: S3Folder, path: Path, there: set[str]) -> None:
        if len(sent) == 2:
            raise RunError("connection lost")
        sent.append(path.name)
        upload(self, path, there)

    with monkeypatch.context() as patch:
        patch.setattr("foundry_sdk.data.convert.s3._STREAMS", 1)
        patch.setattr(S3Folder, "_upload", fail_at_the_third)
        with pytest.raises(RunError, match="connection lost"):
            convert_json(path=lines, out_root="s3://data/y", size_limit=30_000)
    assert not any(key.endswith("index.json") for key in bucket.contents())

    before = {
        item["Key"]: item["LastModified"]
        for item in bucket.client.list_objects_v2(Bucket="data")["Contents"]
    }
    card = convert_json(path=lines, out_root="s3://data/y", size_limit=30_000, resume=True)
    local = convert_json(path=lines, out_root=tmp_path / "local", size_limit=30_000)
    assert card == local
    uploaded = {key.rpartition("/")[2]: data for key, data in bucket.contents().items()}
    assert uploaded == local_files(tmp_path / "local" / "train")
    after = bucket.client.list_objects_v2(Bucket="data")["Contents"]
    assert {item["Key"]: item["LastModified"] for item in after}.items() >= before.items()


def test_a_store_that_keeps_other_bytes_is_noticed(
    bucket: Bucket, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store takes the upload, and then has a flipped bit and no checksum of its own."""
    get, head = S3Folder._get, S3Folder._client.func  # type: ignore[attr-defined]
    del bucket

    def client_without_checksums(self: S3Folder) -> Any:
        client = head(self)
        real = client.head_object

        def head_object(**kwargs: Any) -> dict[str, Any]:
            answer: dict[str, Any] = real(**kwargs)
            answer.pop("ChecksumSHA256", None)
            return answer

        client.head_object = head_object
        return client

    monkeypatch.setattr(S3Folder, "_client", property(client_without_checksums))
    convert_json(path=lines, out_root="s3://data/good")

    def flipped(self: S3Folder, name: str) -> bytes:
        data = bytearray(get(self, name))
        data[len(data) // 2] ^= 1
        return bytes(data)

    monkeypatch.setattr(S3Folder, "_get", flipped)
    with pytest.raises(RunError, match="does not have what was uploaded"):
        convert_json(path=lines, out_root="s3://data/bad")


def test_a_bucket_that_does_not_exist(bucket: Bucket, lines: Path) -> None:
    del bucket
    with pytest.raises(RunError, match=r"cannot list s3://nowhere/train.*NoSuchBucket"):
        convert_json(path=lines, out_root="s3://nowhere")


def test_data_of_another_tool_is_not_replaced_by_resume(bucket: Bucket, lines: Path) -> None:
    bucket.client.put_object(Bucket="data", Key="z/train/index.json", Body=b"{}")
    with pytest.raises(DataError, match="another tool"):
        convert_json(path=lines, out_root="s3://data/z", resume=True)
    assert DataCard.read(Path("/nonexistent")) is None
