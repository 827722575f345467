"""The text loader over several processes: one order, whatever the number of ranks and workers."""

import json
import os
import socket
import subprocess
import sys

import pytest

CODE = """
import json, os, sys
from types import SimpleNamespace
from torch import distributed
from foundry_sdk.data.contract import LoaderContext
from foundry_sdk.data.streams import StreamSpec
from foundry_sdk.data.text import TextDataSpec, TextDatasetSpec

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
if world > 1:
    distributed.init_process_group("gloo")
tokenizer = type("T", (), {
    "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 1, "__len__": lambda _: 276,
})()

def run(task):
    dataset = dict(task["dataset"])
    if "streams" in dataset:
        dataset["streams"] = {k: StreamSpec(**v) for k, v in dataset["streams"].items()}
    spec = TextDataSpec(
        dataset=TextDatasetSpec(**dataset), num_workers=task.get("workers", 0),
        drop_last=task.get("drop_last", True),
    )
    source = spec.build(LoaderContext(
        tokenizer=tokenizer, rank=rank, world_size=world, device_batch=task["batch"] // world,
        max_seq_len=8, seed=1, training=task.get("training", True),
    ))
    if "state" in task:
        source.load_state_dict(task["state"])
    result = {"batches": [], "first_ids": [], "labels": []}
    for _ in range(task.get("epochs", 1)):
        batches = iter(source)
        for batch in batches:
            result["batches"].append(batch.sample_ids.tolist())
            result["first_ids"].append(batch.input_ids[:, 0].tolist())
            result["labels"].append(batch.label_count())
            if len(result["batches"]) == task.get("stop"):
                break
    result["state"] = source.state_dict()
    result["shares"] = {k: s["share"] for k, s in source.describe()["streams"].items()}
    source.close()
    return result

print(json.dumps([run(task) for task in json.loads(sys.argv[1])]))
if world > 1:
    distributed.destroy_process_group()
"""


def launch(world, tasks, *, nodes=1):
    """Run ``tasks`` on ``world`` processes; return the results by task, then by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    per_node = world // nodes
    processes = []
    for rank in range(world):
        environment = {
            **os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1",
            "LOCAL_RANK": str(rank % per_node), "LOCAL_WORLD_SIZE": str(per_node),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, "-c", CODE, json.dumps(tasks)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (_, error) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, error
    by_rank = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    return [list(results) for results in zip(*by_rank, strict=True)]


def global_batches(results):
    """Return the samples of each global batch, sorted."""
    per_rank = [result["batches"] for result in results]
    assert len({len(batches) for batches in per_rank}) == 1, "ranks have unequal batches"
    return [
        sorted(sample for part in parts for sample in part) for parts in zip(*per_rank, strict=True)
    ]


def as_written(results, rows):
    for result in results:
        for samples, firsts in zip(result["batches"], result["first_ids"], strict=True):
            for sample, first in zip(samples, firsts, strict=True):
                assert sample == -1 or rows[sample][0] == first


@pytest.mark.slow
def test_the_order_does_not_depend_on_ranks_nodes_and_workers(mds, token_rows):
    rows = token_rows(103)
    dataset = {"local": str(mds(rows)), "shuffle": True}
    task = {"dataset": dataset, "batch": 12, "epochs": 2}
    spread = {**task, "dataset": {**dataset, "num_canonical_nodes": 4}}
    tasks = [{**each, "workers": workers} for each in (task, spread) for workers in (0, 2)]
    alone = launch(1, tasks)
    expected = [global_batches(results) for results in alone]
    assert expected[0] == expected[1] != expected[2] == expected[3]
    for epoch in (expected[0][:8], expected[0][8:]):
        assert len({sample for batch in epoch for sample in batch}) == 96
    for world, nodes in ((2, 1), (4, 1), (4, 2)):
        together = launch(world, tasks, nodes=nodes)
        assert [global_batches(results) for results in together] == expected
        for results in together:
            as_written(results, rows)
            assert all(result["state"] == results[0]["state"] for result in results)
        assert together[0][0]["state"] == alone[0][0]["state"]


@pytest.mark.slow
@pytest.mark.parametrize("before", [1, 4])
def test_a_run_goes_on_exactly_on_other_ranks(mds, before):
    dataset = {"local": str(mds(103)), "shuffle": True}
    whole = {"dataset": dataset, "batch": 12, "epochs": 2}
    cut = {**whole, "stop": 11, "workers": 1}
    if before == 1:
        uninterrupted, first = launch(1, [whole, cut])
    else:
        (uninterrupted,), (first,) = launch(1, [whole]), launch(before, [cut])
    expected = global_batches(uninterrupted)
    # The second epoch is left after its third batch.
    assert global_batches(first) == expected[:11]
    state = first[0]["state"]
    assert (state["epoch"], state["sample_in_epoch"]) == (1, 36)
    for after in (2,) if before == 1 else (1, 2):
        (rest,) = launch(after, [{"dataset": dataset, "batch": 12, "state": state, "workers": 2}])
        assert global_batches(rest) == expected[11:]


@pytest.mark.parametrize("world", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_an_evaluation_has_each_sample_once(mds, world):
    dataset = {"local": str(mds(50))}
    task = {"dataset": dataset, "batch": 12, "training": False, "drop_last": False}
    few = {**task, "dataset": {"local": str(mds(2, name="few"))}}
    fitting = {**task, "dataset": {"local": str(mds(24, name="fitting"))}}
    for results, count in zip(launch(world, [task, few, fitting]), (50, 2, 24), strict=True):
        batches = global_batches(results)
        assert all(len(batch) == 12 for batch in batches)
        samples = [sample for batch in batches for sample in batch if sample >= 0]
        assert sorted(samples) == list(range(count))
        # A sample has seven labels; what fills the last batch has none.
        assert sum(sum(result["labels"]) for result in results) == 7 * count


def test_each_stream_has_the_share_that_it_reports(mds):
    for number, name in enumerate(("small", "large")):
        mds(20 + 60 * number, name=name)
    folder = mds(1, name="unused").parent
    streams = {
        "small": {"local": str(folder / "small"), "proportion": 3},
        "large": {"local": str(folder / "large"), "proportion": 1},
    }
    task = {"dataset": {"streams": streams, "shuffle": True}, "batch": 4, "stop": 15, "workers": 1}
    (together,) = launch(2, [task])
    samples = [sample for batch in global_batches(together) for sample in batch]
    counted = sum(sample < 20 for sample in samples) / len(samples)
    for result in together:
        assert result["shares"] == pytest.approx({"small": counted, "large": 1 - counted})
    assert 0.6 < counted < 0.9


def test_an_error_of_the_data_is_raised_on_every_rank(mds, tmp_path):
    folder = mds(50)
    (folder / "index.json").write_text("{}")
    task = {"dataset": {"local": str(folder)}, "batch": 12}
    with pytest.raises(AssertionError, match=r"DataError: .*index\.json: document"):
        launch(2, [task])
    assert not list(tmp_path.glob("**/*.lock"))


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_the_ranks_of_a_node_fetch_into_one_folder(mds, tmp_path, compression):
    remote = mds(200, compression=compression)
    dataset = {"remote": str(remote), "local": str(tmp_path / "local"), "shuffle": True}
    (first, again) = launch(2, [{"dataset": dataset, "batch": 8, "workers": 1}] * 2)
    batches = global_batches(first)
    assert sorted(sample for batch in batches for sample in batch) == list(range(200))
    assert global_batches(again) == batches
    names = {path.name for path in (tmp_path / "local").glob("shard*")}
    assert names == {name.removesuffix(".zstd") for name in os.listdir(remote)} - {"index.json"}


@pytest.mark.slow
def test_two_nodes_that_would_fetch_into_one_folder_are_refused(mds, tmp_path):
    dataset = {"remote": str(mds(20)), "local": str(tmp_path / "local")}
    with pytest.raises(AssertionError, match=r"is the download folder of process \d+ \(stream"):
        launch(2, [{"dataset": dataset, "batch": 4}], nodes=2)
