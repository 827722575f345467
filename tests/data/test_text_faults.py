"""Broken, missing and hostile data: noticed before use, by name; a bad copy is fetched again."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from foundry_sdk.data import shared_memory
from foundry_sdk.data.streams import StreamSpec
from foundry_sdk.data.text import TextDatasetSpec, TextDataSpec
from foundry_sdk.errors import DataError


def build(context, *, workers=0, **dataset):
    loader = TextDataSpec(dataset=TextDatasetSpec(**dataset), num_workers=workers, drop_last=False)
    return loader.build(context())


def read_all(context, **options):
    """Return every sample number that an epoch gives."""
    source = build(context, **options)
    try:
        return [sample for batch in source for sample in batch.sample_ids.tolist() if sample >= 0]
    finally:
        source.close()


def flip(path, position=-4):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def shard(folder, number):
    return sorted(path for path in folder.iterdir() if path.name.startswith("shard"))[number]


# --- broken -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("hashes", [["sha256"], ["xxh64"], ["md5", "sha1"]])
def test_one_flipped_bit_of_a_local_shard_is_found(mds, context, workers, hashes):
    folder = mds(60, hashes=hashes)
    flip(shard(folder, 1))
    with pytest.raises(DataError) as error:
        read_all(context, local=str(folder), workers=workers)
    assert f"{shard(folder, 1)}: is damaged" in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_flip_at_any_place_is_found(mds, context):
    folder = mds(60)
    paths = sorted(folder.glob("shard*"))
    random = np.random.default_rng(0)
    for _ in range(50):
        path = paths[random.integers(len(paths))]
        position = int(random.integers(path.stat().st_size))
        flip(path, position)
        with pytest.raises(DataError, match=f"{path.name}: is damaged"):
            read_all(context, local=str(folder))
        flip(path, position)
    assert read_all(context, local=str(folder)) == list(range(60))


def test_shards_can_be_read_without_their_digest(mds, context):
    folder = mds(60)
    flip(shard(folder, 1))
    assert len(read_all(context, local=str(folder), validate_hash="off")) == 60


def test_a_digest_that_the_data_has_not_is_named(mds, context):
    with pytest.raises(DataError, match=r"no sha1 digest, but \['sha256'\]"):
        read_all(context, local=str(mds(8)), validate_hash="sha1")


def test_a_flipped_bit_is_found_by_the_card_where_the_index_has_no_digest(mds, context):
    import hashlib

    from foundry_sdk.data.card import DataCard

    folder = mds(60, hashes=())
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("shard*")
    }
    DataCard(kind="tokens", split="", samples=60, documents=1, shards=digests).write(folder)
    assert len(read_all(context, local=str(folder))) == 60
    flip(shard(folder, 0))
    with pytest.raises(DataError, match=r"shard\.00000\.mds: is damaged: its sha256 is"):
        read_all(context, local=str(folder))


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_shard_that_is_cut_short_is_found_at_the_start(mds, context, compression):
    folder = mds(60, hashes=(), compression=compression)
    path = shard(folder, 1)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=rf"{path.name}: has \d+ bytes, the index says \d+"):
        build(context, local=str(folder))


def test_a_missing_shard_is_found_at_the_start(mds, context):
    folder = mds(60)
    shard(folder, 2).unlink()
    with pytest.raises(DataError, match=r"shard\.00002\.mds: is missing"):
        build(context, local=str(folder))


def test_damage_within_a_shard_without_digest_names_shard_and_sample(mds, context):
    folder = mds(60, hashes=())
    path = shard(folder, 1)
    content = bytearray(path.read_bytes())
    content[4:12] = b"\xff" * 8  # the offsets of the first sample
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"shard\.00001\.mds: sample 0 cannot be read"):
        read_all(context, local=str(folder))


def test_an_index_that_asks_for_terabytes_is_refused_without_asking_for_them(mds, context):
    folder = mds(60)
    values = json.loads((folder / "index.json").read_text())
    values["shards"][0]["samples"] = 10**12
    (folder / "index.json").write_text(json.dumps(values))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"samples: found 1000000000000"):
        build(context, local=str(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_pickled_columns_are_never_read(mds, context):
    folder = mds([{"a": 1}], columns={"tokens": "pkl"})
    with pytest.raises(DataError, match="can run code"):
        build(context, local=str(folder))


# --- missing ----------------------------------------------------------------------------------


def test_a_missing_folder_and_split_are_named(mds, context, tmp_path):
    mds(8, name="root/train")
    with pytest.raises(DataError, match=r"does not contain split 'val'; it has the splits \['tra"):
        build(context, local=str(tmp_path / "root"), split="val")
    with pytest.raises(DataError, match=r"in its splits \['train'\]; set split"):
        build(context, local=str(tmp_path / "root"))
    with pytest.raises(DataError, match="there is no such folder"):
        build(context, local=str(tmp_path / "no" / "thing"))
    (tmp_path / "plain").mkdir()
    with pytest.raises(DataError, match="no folder of MDS shards; make one with"):
        build(context, local=str(tmp_path / "plain"))


def test_a_remote_that_is_not_there_is_named(context, tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        build(context, remote=str(tmp_path / "nothing"), local=str(tmp_path / "local"))


# --- remote -----------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_folder_is_fetched_as_it_is_needed(mds, context, tmp_path, compression, workers):
    remote = mds(60, compression=compression)
    options = {"remote": str(remote), "local": str(tmp_path / "local"), "workers": workers}
    assert read_all(context, **options) == list(range(60))
    kept = {path.name for path in (tmp_path / "local").iterdir() if path.name.startswith("shard")}
    assert kept == {f"shard.{number:05}.mds" for number in range(len(kept))}


def test_the_folder_of_the_run_is_used_where_none_is_named(mds, context):
    assert read_all(context, remote=str(mds(8))) == list(range(8))
    assert (context().cache_dir / "node-0" / "data" / "index.json").is_file()
    loader = TextDataSpec(dataset=TextDatasetSpec(remote="s3://bucket/data"))
    with pytest.raises(DataError, match="needs a folder for downloaded shards; give local"):
        loader.build(context(cache_dir=None))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_bad_cached_copy_is_fetched_again(mds, context, tmp_path, compression, workers):
    remote = mds(60, compression=compression)
    options = {"remote": str(remote), "local": str(tmp_path / "local"), "workers": workers}
    read_all(context, **options)
    flip(tmp_path / "local" / "shard.00001.mds")
    assert read_all(context, **options) == list(range(60))


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_remote_shard_that_stays_bad_is_never_used(mds, context, tmp_path, compression):
    remote = mds(60, compression=compression)
    flip(shard(remote, 1))
    options = {"remote": str(remote), "local": str(tmp_path / "local"), "workers": 1}
    for _ in range(2):  # and not by the next run either
        with pytest.raises(DataError, match=r"00001.*is damaged.*fetched twice"):
            read_all(context, **options)


def bytes_of_shards(folder):
    total = 0
    for path in folder.glob("shard.*.mds"):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            total += path.stat().st_size
    return total


def test_a_cache_limit_is_kept(mds, context, tmp_path):
    remote = mds(800, size_limit=2000)
    options = {"remote": str(remote), "local": str(tmp_path / "local"), "cache_limit": 20000}
    source = build(context, workers=1, predownload=8, **options)
    largest = 0
    try:
        for _ in source:
            largest = max(largest, bytes_of_shards(tmp_path / "local"))
    finally:
        source.close()
    assert 0 < largest <= 20000 < bytes_of_shards(remote)


def test_a_cache_limit_never_deletes_the_only_copy(mds, context, tmp_path):
    local, remote = mds(60, name="local"), mds(60, name="remote")
    streams = {
        "kept": StreamSpec(local=str(local)),
        "fetched": StreamSpec(remote=str(remote), local=str(tmp_path / "cache")),
    }
    with pytest.raises(DataError, match=r"but those of \['kept'\] are nowhere else"):
        build(context, streams=streams, cache_limit=20000)
    before = set(local.iterdir())
    assert read_all(context, local=str(local), cache_limit=1) == list(range(60))
    assert set(local.iterdir()) == before


def test_a_cache_of_unpacked_shards_is_data_of_its_own(mds, context, tmp_path):
    read_all(context, remote=str(mds(60, compression="zstd")), local=str(tmp_path / "local"))
    assert read_all(context, local=str(tmp_path / "local")) == list(range(60))


def test_remote_and_local_that_are_one_folder_lose_nothing(mds, context):
    folder = mds(60, compression="zstd")
    before = {path.name for path in folder.iterdir()}
    flip(shard(folder, 0))
    with pytest.raises(DataError, match="is damaged"):
        read_all(context, remote=str(folder), local=str(folder))
    assert before <= {path.name for path in folder.iterdir()}


# --- several at once --------------------------------------------------------------------------


def test_two_streams_in_one_folder_are_both_named(mds, context):
    folder = str(mds(8))
    streams = {"one": StreamSpec(local=folder), "two": StreamSpec(local=folder + "/.")}
    with pytest.raises(DataError, match="streams 'one' and 'two' lie in one folder"):
        build(context, streams=streams)


def test_two_loaders_that_download_into_one_folder_are_refused(mds, context, tmp_path):
    options = {"remote": str(mds(8)), "local": str(tmp_path / "local")}
    first = build(context, **options)
    with pytest.raises(DataError, match=rf"download folder of process {os.getpid()} \(stream"):
        build(context, **options)
    first.close()
    assert read_all(context, **options) == list(range(8))


CHILD = """
import sys, time
from foundry_sdk.data.contract import LoaderContext
from foundry_sdk.data.text import TextDataSpec, TextDatasetSpec
tokenizer = type("T", (), {
    "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 1, "__len__": lambda _: 276,
})()
loader = TextDataSpec(
    dataset=TextDatasetSpec(remote=sys.argv[1], local=sys.argv[2], shuffle=True), num_workers=2
)
source = loader.build(LoaderContext(
    tokenizer=tokenizer, rank=0, world_size=1, device_batch=4, max_seq_len=8, seed=1, training=True,
))
for number in range(10**9):
    for batch in source:
        print(number, flush=True)
        time.sleep(0.01)
"""


@pytest.fixture
def child():
    """Return a function that starts a process which iterates until it is killed."""
    groups = []

    def start(remote, local):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(remote), str(local)],
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        groups.append(process)
        assert process.stdout.readline() == "0\n"
        return process

    yield start
    for process in groups:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def objects(pid):
    """Return the shared memory that process ``pid`` says it has made."""
    note = f'"pid": {pid},'.encode()
    paths = shared_memory.SHARED_MEMORY.glob("[0-9]" * 13 + "_locals")
    prefixes = [path.name.partition("_")[0] for path in paths if note in path.read_bytes()]
    return {path for prefix in prefixes for path in shared_memory.SHARED_MEMORY.glob(f"{prefix}_*")}


def test_a_killed_run_is_no_obstacle_and_a_living_one_is_left_alone(mds, context, tmp_path, child):
    remote = mds(60)
    living, killed = child(remote, tmp_path / "other"), child(remote, tmp_path / "local")
    of_living, of_killed = objects(living.pid), objects(killed.pid)
    assert of_living
    assert of_killed
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert all(path.exists() for path in of_killed), "nothing is left, so this shows nothing"
    options = {"remote": str(remote), "local": str(tmp_path / "local")}
    assert read_all(context, **options) == list(range(60))
    assert not any(path.exists() for path in of_killed)
    assert all(path.exists() for path in of_living)
    with pytest.raises(DataError, match=f"download folder of process {living.pid}"):
        build(context, remote=str(remote), local=str(tmp_path / "other"))
    assert living.poll() is None
    deadline = time.monotonic() + 60
    while int(living.stdout.readline()) < 1:  # it goes on into its second epoch
        assert time.monotonic() < deadline


def test_nothing_is_left_after_a_normal_end(mds, context):
    source = build(context, local=str(mds(8)), workers=2)
    assert objects(os.getpid())
    list(source)
    source.close()
    assert not objects(os.getpid())


def test_what_is_not_ours_is_not_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shared_memory, "gettempdir", lambda: str(tmp_path / "tmp"))
    foreign = bytes(4) + shared_memory.owner().replace(b'"namespace": ', b'"namespace": 1')
    for name, content in (
        ("000000_locals", b"theirs"),
        ("1234567890123_locals", bytes(4) + shared_memory.owner()),
        ("1234567890124_locals", foreign.replace(str(os.getpid()).encode(), b"99999999")),
        ("1234567890125_locals", b"\xff\xfe no note"),
        ("1234567890126_other", b""),
    ):
        Path(tmp_path / name).write_bytes(content)
    before = set(tmp_path.iterdir())
    assert shared_memory.reclaim() == []
    assert set(tmp_path.iterdir()) == before
