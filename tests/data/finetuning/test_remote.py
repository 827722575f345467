"""Tables in a bucket of a local S3 server, and behind a local web server."""

import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from foundry_sdk.data import convert_finetuning
from foundry_sdk.data.finetuning import remote
from foundry_sdk.data.finetuning.spec import FinetuningDatasetSpec
from foundry_sdk.errors import DataError


@pytest.fixture(scope="module")
def endpoint():
    pytest.importorskip("boto3", reason="needs the s3 extra")
    moto_server = pytest.importorskip("moto.server", reason="needs moto[server]")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch, tmp_path):
    import tempfile

    import boto3

    monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="data")
    yield client
    for item in client.list_objects_v2(Bucket="data").get("Contents", ()):
        client.delete_object(Bucket="data", Key=item["Key"])


@pytest.fixture
def web(tmp_path):
    """A web server over a folder; notes what it was asked for."""
    folder = tmp_path / "web"
    folder.mkdir()
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *given):
            super().__init__(*given, directory=str(folder))

        def log_message(self, *given):
            asked.append(f"{self.command} {self.path}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.asked, server.folder = asked, folder
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.labels, other.labels)


def write(rows, ending, path):
    from datasets import Dataset

    table = Dataset.from_list(rows)
    if ending == ".csv":
        table.to_csv(path, index=False)
    elif ending == ".parquet":
        table.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_file_of_a_bucket_gives_the_batches_of_the_local_one(
    bucket, source, prompts, tmp_path, ending
):
    rows = prompts(12)
    file = write(rows, ending, tmp_path / f"local{ending}")
    bucket.upload_file(str(file), "data", f"some/where/my-train{ending}")
    local = list(source(rows))
    same(source(hf_name="s3://data/some/where", split="my-train"), local)
    same(source(hf_name=f"s3://data/some/where/my-train{ending}", split="train"), local)


def test_what_is_there_is_not_fetched_again_unless_it_changed(
    bucket, source, prompts, tmp_path, monkeypatch
):
    fetched = []
    monkeypatch.setattr(remote._log, "info", lambda text, *given: fetched.append(given[0]))
    for count in (12, 12, 14, 14):
        file = write(prompts(count), ".jsonl", tmp_path / "rows.jsonl")
        bucket.upload_file(str(file), "data", "train.jsonl")
        same(source(hf_name="s3://data", split="train"), source(prompts(count)))
    assert fetched == ["s3://data/train.jsonl"] * 2
    (copy,) = (tmp_path / "foundry" / "tables").glob("*/train.jsonl")
    copy.write_text(copy.read_text().replace("cat", "dog"))  # a damaged disk
    same(source(hf_name="s3://data", split="train"), source(prompts(14)))
    assert len(fetched) == 3


def test_a_web_server(web, source, prompts):
    write(prompts(12), ".jsonl", web.folder / "train.jsonl")
    for _ in range(2):
        same(source(hf_name=web.url, split="train"), source(prompts(12)))
    assert [each for each in web.asked if each == "GET /train.jsonl"] == ["GET /train.jsonl"]
    files = {"data_files": {"train": [f"{web.url}/train.jsonl"]}}
    same(source(hf_name="json", split="train", hf_kwargs=files), source(prompts(12)))


def test_what_fsspec_opens(source, prompts):
    import fsspec

    rows = prompts(12)
    memory = fsspec.filesystem("memory")
    with memory.open("/tables/train.jsonl", "wb") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    same(source(hf_name="memory://tables", split="train"), source(rows))
    memory.rm("/tables", recursive=True)


def test_what_is_not_there_is_named(bucket, web, source):
    for uri in ("s3://data/nothing", "s3://missing", web.url):
        with pytest.raises(DataError, match=r"none of train\.csv, train\.json, train\.jsonl, tra"):
            source(hf_name=uri, split="train")
    with pytest.raises(DataError, match=r"x\.csv: there is no such file"):
        source(hf_name=f"{web.url}/x.csv", split="train")
    with pytest.raises(DataError, match=r"cannot be read .*nosuch"):
        source(hf_name="nosuch://place", split="train")
    with pytest.raises(ValueError, match=r"hf_kwargs\.data_files: hf_name 's3://data'"):
        FinetuningDatasetSpec(hf_name="s3://data", split="train", hf_kwargs={"data_files": "x"})


def test_a_file_that_arrives_in_part_is_refused(bucket, source, prompts, tmp_path, monkeypatch):
    file = write(prompts(12), ".jsonl", tmp_path / "rows.jsonl")
    bucket.upload_file(str(file), "data", "train.jsonl")
    monkeypatch.setattr(
        remote.S3Folder, "download", lambda self, name, path: path.write_bytes(b"{}\n")
    )
    with pytest.raises(DataError, match="3 bytes arrived of"):
        source(hf_name="s3://data", split="train")
    assert not list((tmp_path / "foundry" / "tables").glob("*/train.jsonl"))


def test_conversion_from_a_bucket_into_a_bucket(bucket, source, prompts, tmp_path):
    rows = prompts(40)
    file = write(rows, ".jsonl", tmp_path / "rows.jsonl")
    bucket.upload_file(str(file), "data", "raw/train.jsonl")
    common = {"splits": ["train"], "size_limit": 1000, "compression": "zstd"}
    convert_finetuning(dataset="s3://data/raw", out_root="s3://data/mds", **common)
    convert_finetuning(
        dataset="json", data_files=["s3://data/raw/train.jsonl"], out_root="s3://data/other",
        local=tmp_path / "kept", **common,
    )  # fmt: skip
    names = [item["Key"] for item in bucket.list_objects_v2(Bucket="data")["Contents"]]
    assert len([name for name in names if name.startswith("mds/train/shard.")]) > 2
    uploaded = {
        name.removeprefix("other/"): bucket.get_object(Bucket="data", Key=name)["Body"].read()
        for name in names
        if name.startswith("other/")
    }
    kept = {
        str(path.relative_to(tmp_path / "kept")): path.read_bytes()
        for path in (tmp_path / "kept").rglob("*")
        if path.is_file()
    }
    assert kept == uploaded
    assert "train/index.json" in kept
    fetched = source(remote="s3://data/mds", local=str(tmp_path / "cache"), split="train")
    same(fetched, source(rows))
    same(source(local=str(tmp_path / "kept"), split="train"), source(rows))
