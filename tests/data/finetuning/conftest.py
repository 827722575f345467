"""Rows in files of every kind, and sources over them."""

import json
import os
from pathlib import Path

import pytest

DATA = os.environ.get("FOUNDRY_TEST_DATA")


@pytest.fixture(autouse=True)
def no_shared_caches(tmp_path, monkeypatch):
    """Keep what libraries cache inside of the test's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setenv("FOUNDRY_CACHE", str(tmp_path / "foundry"))


@pytest.fixture
def jsonl(tmp_path):
    """Return a function that writes rows as JSON Lines and returns the file."""

    def write(rows, name="train.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def shards(tmp_path):
    """Return a function that writes rows with streaming's own writer and returns the folder."""
    from foundry_sdk.data.mds import import_streaming

    def write(rows, columns, name="shards"):
        folder = tmp_path / name
        writer = import_streaming().MDSWriter(out=str(folder), columns=columns, size_limit=3000)
        with writer as out:
            for row in rows:
                out.write(row)
        return folder

    return write


@pytest.fixture
def source(context, jsonl):
    """Return a function that builds a source over rows (or of a dataset's own fields)."""
    from foundry_sdk.data.finetuning.spec import FinetuningDatasetSpec, FinetuningDataSpec

    def build(rows=None, *, loader=None, length=64, batch=4, **changes):
        where = {key: changes.pop(key) for key in CONTEXT & set(changes)}
        fields = dict(changes)
        if rows is not None:
            files = {"data_files": str(jsonl(rows))}
            fields |= {"hf_name": "json", "hf_kwargs": files, "split": "train"}
        spec = FinetuningDataSpec(dataset=FinetuningDatasetSpec(**fields), **(loader or {}))
        return spec.build(context(max_seq_len=length, device_batch=batch, **where))

    return build


CONTEXT = {"rank", "world_size", "training", "encoder_decoder", "isolates_documents", "tokenizer"}


@pytest.fixture
def prompts():
    """Return a function that makes rows of prompts and responses of uneven lengths."""

    def make(count):
        return [
            {
                "prompt": f"the cat {n} sat" + " on the mat" * (n % 4),
                "response": "dog " * (1 + n % 3),
            }
            for n in range(count)
        ]

    return make


@pytest.fixture(scope="session")
def neox():
    """The GPT-NeoX tokenizer."""
    if DATA is None:
        pytest.skip("FOUNDRY_TEST_DATA is not set")
    from foundry_sdk.data.contract import TokenizerSpec
    from foundry_sdk.data.tokenizer import load_tokenizer

    return load_tokenizer(TokenizerSpec(name=str(Path(DATA) / "gpt-neox-20b")))


@pytest.fixture(scope="session")
def dolly():
    """The first rows of dolly_hhrlhf, and their file."""
    if DATA is None:
        pytest.skip("FOUNDRY_TEST_DATA is not set")
    path = Path(DATA) / "dolly_hhrlhf_train_small.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], path
