"""Shards fetched from an S3 server on this machine."""

import shutil
import urllib.request

import pytest

from foundry_sdk.data.text import TextDatasetSpec, TextDataSpec
from foundry_sdk.errors import DataError

boto3 = pytest.importorskip("boto3", reason="needs the extra s3")
moto_server = pytest.importorskip("moto.server", reason="needs moto")


@pytest.fixture
def bucket(monkeypatch):
    """A bucket on a server of its own; S3_ENDPOINT_URL leads to it."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    for name, value in {
        "S3_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    # The server keeps its buckets in this process, even for the next server.
    urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()  # noqa: S310
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="data")
    yield client
    server.stop()


def upload(client, folder):
    for path in folder.iterdir():
        client.upload_file(str(path), "data", f"set/train/{path.name}")
    shutil.rmtree(folder)


def read_all(context, local, **options):
    spec = TextDatasetSpec(remote="s3://data/set", local=str(local), split="train", **options)
    source = TextDataSpec(dataset=spec, num_workers=1, drop_last=False).build(context())
    try:
        return [sample for batch in source for sample in batch.sample_ids.tolist() if sample >= 0]
    finally:
        source.close()


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_shards_are_fetched_from_a_bucket(mds, context, bucket, tmp_path, compression):
    upload(bucket, mds(60, compression=compression))
    assert read_all(context, tmp_path / "local") == list(range(60))
    assert (tmp_path / "local" / "train" / "shard.00000.mds").is_file()
    # A second run needs the bucket no more.
    bucket.delete_object(Bucket="data", Key="set/train/shard.00000.mds")
    assert read_all(context, tmp_path / "local") == list(range(60))


def test_a_missing_object_is_named(mds, context, bucket, tmp_path):
    upload(bucket, mds(60))
    bucket.delete_object(Bucket="data", Key="set/train/shard.00001.mds")
    with pytest.raises(DataError, match=r"shard\.00001\.mds could not be fetched from s3://data"):
        read_all(context, tmp_path / "local", download_retry=1)


def test_a_bucket_without_an_index_is_named(context, bucket, tmp_path):
    assert bucket.list_buckets()["Buckets"]
    with pytest.raises(DataError, match=r"index\.json could not be fetched from s3://data/set"):
        read_all(context, tmp_path / "local", download_retry=1)
