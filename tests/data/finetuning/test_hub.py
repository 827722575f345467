"""A dataset of the hub by name, from a local server that answers the hub's API."""

import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

CODE = """
import json, sys
from foundry_sdk.data.contract import LoaderContext, TokenizerSpec
from foundry_sdk.data.finetuning.spec import FinetuningDataSpec, FinetuningDatasetSpec
from foundry_sdk.data.preprocessors import dolly
from foundry_sdk.data.tokenizer import load_tokenizer
from foundry_sdk.errors import FoundryError
fields = json.loads(sys.argv[1])
spec = FinetuningDataSpec(dataset=FinetuningDatasetSpec(preprocessor=dolly(), **fields))
context = LoaderContext(
    tokenizer=load_tokenizer(TokenizerSpec(name=sys.argv[2])), rank=0, world_size=1,
    device_batch=2, max_seq_len=512, seed=1, training=True,
)
try:
    fields = ("input_ids", "labels", "attention_mask", "sample_ids")
    print(json.dumps([
        {name: getattr(batch, name).numpy().tobytes().hex() for name in fields}
        for batch in spec.build(context)
    ]))
except FoundryError as error:
    print(json.dumps(str(error)))
"""
ROWS = [
    {"instruction": f"the cat {n}", "input": "on the mat" * (n % 2), "output": "dog"}
    for n in range(6)
]
NAME = "HuggingFaceH4/databricks_dolly_15k"


@pytest.fixture(scope="module")
def server():
    """The hub that the tests of conversion answer for."""
    place = Path(__file__).parents[1] / "convert" / "test_convert_hub.py"
    module_spec = importlib.util.spec_from_file_location("local_hub", place)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    module.Hub.repositories = {
        NAME: {
            "data/train.jsonl": module.jsonl(ROWS),
            "data/test.jsonl": module.jsonl(ROWS[:2]),
            "README.md": b"# Dolly\n",
        }
    }
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), module.Hub)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()


@pytest.fixture
def load(tmp_path, bpe_folder):
    def run(endpoint, **fields):
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        done = subprocess.run(
            [sys.executable, "-c", CODE, json.dumps(fields), str(bpe_folder)],
            env={
                **environment,
                "HF_ENDPOINT": endpoint,
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_XET": "1",
                "FOUNDRY_CACHE": str(tmp_path / "cache"),
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        return json.loads(done.stdout)

    return run


def bytes_of(source):
    """Return all bytes of all batches."""
    fields = ("input_ids", "labels", "attention_mask", "sample_ids")
    return [
        {name: getattr(batch, name).numpy().tobytes().hex() for name in fields} for batch in source
    ]


@pytest.mark.parametrize("safe", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_hub_local_file_and_shards_give_the_same_bytes(  # noqa: PLR0917 - fixtures
    load, server, source, safe, jsonl, tmp_path
):
    from foundry_sdk.data import convert_finetuning
    from foundry_sdk.data.preprocessors import dolly

    found = load(server, hf_name=NAME, split="train", safe_load=safe)
    how = {"length": 512, "batch": 2}
    assert len(found) == len(ROWS) / 2
    assert found == bytes_of(source([dolly().build()(row) for row in ROWS], **how))
    file = str(jsonl(ROWS, "raw.jsonl"))
    local = source(hf_name=file, split="train", preprocessor=dolly(), **how)
    assert found == bytes_of(local)
    convert_finetuning(dataset=file, preprocessor=dolly(), out_root=tmp_path / "mds")
    assert found == bytes_of(source(local=str(tmp_path / "mds"), split="train", **how))
    assert len(load(server, hf_name=NAME, split="test", safe_load=safe)) == 1


def test_an_unknown_dataset_is_named(load, server):
    text = load(server, hf_name="acme/nothing", split="train")
    assert text.startswith("dataset hf_name 'acme/nothing', split 'train': ")
    assert "check the name" in text
