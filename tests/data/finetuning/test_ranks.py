"""Two processes of one machine: one tokenizes, the other waits for a file, both say what failed."""

import json
import os
import socket
import subprocess
import sys

import pytest

CODE = """
import json, os, sys, time
from torch import distributed
from foundry_sdk.data.contract import LoaderContext, TokenizerSpec
from foundry_sdk.data.finetuning import encode
from foundry_sdk.data.finetuning.spec import FinetuningDataSpec, FinetuningDatasetSpec
from foundry_sdk.data.tokenizer import load_tokenizer
from foundry_sdk.errors import FoundryError

task = json.loads(sys.argv[1])
rank = int(os.environ["RANK"])
distributed.init_process_group("gloo")
original = encode.ExampleEncoder.encode

def encode_once(self, *arguments):
    if rank:
        raise AssertionError("only the first process of a machine tokenizes")
    time.sleep(1)  # longer than the others take to come here
    return original(self, *arguments)

encode.ExampleEncoder.encode = encode_once
spec = FinetuningDataSpec(dataset=FinetuningDatasetSpec(**task["dataset"]))
context = LoaderContext(
    tokenizer=load_tokenizer(TokenizerSpec(name=task["tokenizer"])), rank=rank, world_size=2,
    device_batch=2, max_seq_len=64, seed=1, training=True,
)
try:
    result = {"rows": [[b.sample_ids.tolist(), b.input_ids.tolist()] for b in spec.build(context)]}
except FoundryError as error:
    result = {"error": str(error)}
print(json.dumps(result))
distributed.destroy_process_group()
"""


def launch(task, home):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, json.dumps(task)],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "FOUNDRY_CACHE": str(home / "cache"),
                "HF_DATASETS_CACHE": str(home / "arrow"),
            },
        )
        for rank in (0, 1)
    ]
    return [json.loads(process.communicate(timeout=100)[0]) for process in processes]


@pytest.fixture
def task(bpe_folder):
    def make(path):
        dataset = {"hf_name": "json", "hf_kwargs": {"data_files": str(path)}, "split": "train"}
        return {"dataset": {**dataset, "shuffle": True}, "tokenizer": str(bpe_folder)}

    return make


def test_one_process_tokenizes_and_both_get_their_share(source, prompts, jsonl, tmp_path, task):
    rows = prompts(22)
    ranks = launch(task(jsonl(rows, "shared.jsonl")), tmp_path)
    together = [
        sorted((s, ids) for rank in ranks for s, ids in zip(*rank["rows"][number], strict=True))
        for number in range(len(ranks[0]["rows"]))
    ]
    alone = source(rows, shuffle=True, batch=4)
    expected = [
        sorted(zip(batch.sample_ids.tolist(), batch.input_ids.tolist(), strict=True))
        for batch in alone
    ]
    assert together == expected
    assert not list((tmp_path / "cache" / "finetuning").glob("answer-*"))


def test_both_processes_say_which_row_is_no_example(prompts, jsonl, tmp_path, task):
    ranks = launch(task(jsonl([*prompts(5), {"prompt": "a"}])), tmp_path)
    assert ranks[0] == ranks[1]
    assert "row 5: response must be a text, got NoneType" in ranks[0]["error"]
