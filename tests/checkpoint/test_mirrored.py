"""Checkpoints in a bucket of a local S3 server, and in a folder that fsspec opens."""

import hashlib
import json
import logging
import os
import random
import shutil
import signal
import threading

import pytest
import torch

from foundry_sdk.checkpoint import bucket as bucket_module
from foundry_sdk.checkpoint.mirrored import MirroredStore, fetch_checkpoint
from foundry_sdk.checkpoint.patience import Patience
from foundry_sdk.checkpoint.ranks import SoloRanks
from foundry_sdk.errors import CheckpointError, CheckpointWriteError, RemoteStoreError
from foundry_sdk.faultpoints import VARIABLE

TENSORS = {"model.w": torch.arange(12.0).reshape(3, 4), "model.b": torch.ones(3)}


def patient(**changes):
    return Patience(**{"deadline": 20.0, "attempts": 4, "first": 0.01, **changes})


def opened(folder, uri, keep=-1, ranks=None, **patience):
    ranks = ranks or SoloRanks()
    return MirroredStore(folder, ranks, uri, keep=keep, patience=patient(**patience))


def save(store, *steps):
    for step in steps:
        tensors = {name: tensor + step for name, tensor in TENSORS.items()}
        store.save(step, tensors, {"step": step}, {"rng": step})


def assert_newest(store, step):
    newest = store.newest()
    assert newest is not None
    assert newest.step == step
    into = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    scalars, _ = store.load(newest, into)
    assert scalars == {"step": step}
    for name, tensor in TENSORS.items():
        assert torch.equal(into[name], tensor + step)


def stored(folder, uri, *steps, **options):
    """Save ``steps``, and return only when all are stored."""
    store = opened(folder, uri, **options)
    save(store, *steps)
    store.finish()
    store.close()


@pytest.fixture
def places(tmp_path):
    return [tmp_path / name for name in ("first", "second", "third")]


def test_a_bucket_holds_the_files_of_the_disk_and_another_machine_goes_on(bucket, places):
    stored(places[0], bucket.uri, 1, 2)
    assert bucket.whole() == [1, 2]
    for path in (places[0] / "step-000002").iterdir():
        key = f"deep/run/step-000002/{path.name}"
        assert bucket.read(key) == path.read_bytes()
        head = bucket.client.head_object(Bucket=bucket.name, Key=key, ChecksumMode="ENABLED")
        assert "ChecksumSHA256" in head
    assert_newest(opened(places[1], bucket.uri), 2)
    assert sorted(os.listdir(places[1])) == ["step-000002"]


def test_the_manifest_is_stored_last_and_deleted_first(bucket, places):
    bucket.server.seen.clear()
    stored(places[0], bucket.uri, 1, 2, 3, keep=2)
    assert bucket.whole() == [2, 3]
    assert bucket.files(1) == set()
    for step in (1, 2, 3):
        puts = [p for m, p in bucket.server.seen if m == "PUT" and f"step-00000{step}/" in p]
        assert puts[-1].endswith("/manifest.json")
        assert len(puts) == len(set(puts)) >= 4
    deleted = [p for m, p in bucket.server.seen if m == "DELETE" and "step-" in p]
    assert deleted[0].endswith("step-000001/manifest.json")
    committed = bucket.server.seen.index(
        ("PUT", f"/{bucket.name}/deep/run/step-000003/manifest.json")
    )
    assert committed < bucket.server.seen.index(("DELETE", deleted[0]))


@pytest.mark.slow
def test_two_stay_on_the_disk_and_all_in_the_store(bucket, places):
    stored(places[0], bucket.uri, 1, 2, 3, 4, 5)
    assert bucket.whole() == [1, 2, 3, 4, 5]
    assert sorted(os.listdir(places[0])) == [".lock", "step-000004", "step-000005"]


@pytest.mark.parametrize("name", ["manifest.json", "shard"])
def test_a_flipped_byte_is_passed_over_with_its_reason(*, bucket, places, name, caplog):
    stored(places[0], bucket.uri, 1, 2)
    (key,) = (key for key in sorted(bucket.keys()) if f"step-000002/{name}" in key)
    bucket.flip(key, random.Random(0).randrange(10**6))  # noqa: S311
    bucket.server.seen.clear()
    other = opened(places[1], bucket.uri)
    assert_newest(other, 1)
    fetched = bucket.server.seen.count(("GET", f"/{bucket.name}/{key}"))
    assert fetched == (1 if name == "manifest.json" else 2), "one more try, and no more"
    (skipped,) = other.skipped
    assert key.rsplit("/", 1)[-1] in skipped.reason
    assert "damaged" in skipped.reason
    assert skipped.reason in caplog.text
    assert os.listdir(places[1]) == ["step-000001"]
    # The disk that has the file whole needs it from nowhere; the store is then put right.
    own = opened(places[0], bucket.uri)
    own.prepare()
    assert_newest(own, 2)
    own.finish()
    own.close()
    if name == "manifest.json":
        assert_newest(opened(places[2], bucket.uri), 2)


def test_a_file_or_a_manifest_that_is_missing(bucket, places):
    stored(places[0], bucket.uri, 1, 2, 3)
    bucket.remove("deep/run/step-000003/manifest.json")
    bucket.remove("deep/run/step-000002/state.json")
    other = opened(places[1], bucket.uri)
    assert_newest(other, 1)
    reasons = [skipped.reason for skipped in other.skipped]
    assert "step-000003: manifest.json: missing, so it was never whole" in reasons[0]
    assert "step-000002/state.json: missing" in reasons[1]
    bucket.flip("deep/run/step-000001/manifest.json", 40)
    with pytest.raises(CheckpointError, match=r"none of them is whole(.|\n)*step-000001"):
        opened(places[2], bucket.uri).newest()


def test_a_store_with_nothing_whole_yet_is_a_new_start(bucket, places):
    assert opened(places[0], bucket.uri).newest() is None
    bucket.write("deep/run/step-000007/state.json", b"{}")
    store = opened(places[0], bucket.uri)
    assert store.newest() is None
    assert "manifest.json: missing" in store.skipped[0].reason
    assert store.holds_any()


def test_a_busy_server_is_asked_again(bucket, places):
    left = {"n": 6}

    def busy(method, path):
        if "step-" in path and left["n"]:
            left["n"] -= 1
            return "503"
        return None

    bucket.server.fault = busy
    stored(places[0], bucket.uri, 1, attempts=8)
    assert left["n"] == 0
    assert bucket.whole() == [1]
    left["n"] = 6
    assert_newest(opened(places[1], bucket.uri, attempts=8), 1)
    assert left["n"] == 0


def test_half_an_answer_is_no_checkpoint(bucket, places):
    stored(places[0], bucket.uri, 1)
    cut = []

    def cut_first(method, path):
        if method == "GET" and path.endswith(".safetensors") and path not in cut:
            cut.append(path)
            return "cut"
        return None

    bucket.server.fault = cut_first
    assert_newest(opened(places[1], bucket.uri), 1)
    assert cut


def test_a_failed_copy_is_told_and_tried_again_with_the_next_save(bucket, places, caplog):
    store = opened(places[0], bucket.uri, keep=2, attempts=2)
    save(store, 1)
    store.finish()
    bucket.server.fault = lambda method, path: "503" if method == "PUT" else None
    save(store, 2, 3)
    with caplog.at_level(logging.WARNING), pytest.raises(CheckpointWriteError) as raised:
        store.finish()
    assert "given up after 2 attempt(s)" in caplog.text
    assert "step-000002, step-000003: not stored in s3://" in str(raised.value)
    assert bucket.whole() == [1]
    bucket.server.fault = lambda method, path: None
    save(store, 4)
    store.finish()
    store.close()
    assert bucket.whole() == [3, 4]
    assert sorted(os.listdir(places[0])) == [".lock", "step-000003", "step-000004"]


def test_a_server_that_never_answers_ends_at_the_deadline(bucket, places):
    store = opened(places[0], bucket.uri)
    store.prepare()
    slow = opened(places[1], bucket.uri, deadline=0.2, attempts=100)
    bucket.server.fault = lambda method, path: "hang"
    with pytest.raises(RemoteStoreError, match=r"s3://.*(no answer|given up|Read timeout)"):
        slow.newest()
    with pytest.raises(RemoteStoreError):
        slow.prepare()
    slow.close()
    store._remote = slow._remote.__class__(slow._remote.objects, patient(deadline=0.2))
    save(store, 1)
    with pytest.raises(CheckpointWriteError, match="step-000001: not stored"):
        store.finish()
    store.close()
    bucket.server.release.set()


def test_what_a_store_refuses_is_told_at_once_and_before_any_work(bucket, places):
    with pytest.raises(RemoteStoreError, match="NoSuchBucket"):
        opened(places[0], "s3://no-such-bucket-here/run").prepare()
    for uri in ("s3://", "s3://key:secret@bucket/run", "s3://bucket/run?token=secret"):
        with pytest.raises(CheckpointError) as raised:
            opened(places[0], uri)
        assert "secret" not in str(raised.value)
    for uri in ("nonsense://x/y", "://x"):
        with pytest.raises(CheckpointError, match="no folder of checkpoints can be there"):
            opened(places[0], uri)


@pytest.mark.slow
def test_an_object_in_parts_is_whole_and_verified(bucket, places, monkeypatch):
    monkeypatch.setattr(bucket_module, "_ONE_REQUEST", 5 * 2**20)
    monkeypatch.setattr(bucket_module, "_PART", 5 * 2**20)
    tensors = {"model.w": torch.randn(11 * 2**18, generator=torch.Generator().manual_seed(0))}
    store = opened(places[0], bucket.uri)
    store.save(1, tensors, {}, {})
    store.finish()
    store.close()
    head = [
        bucket.client.head_object(Bucket=bucket.name, Key=key)["ETag"]
        for key in sorted(bucket.keys())
    ]
    assert any("-3" in tag for tag in head)
    into = {"model.w": torch.zeros_like(tensors["model.w"])}
    other = opened(places[1], bucket.uri)
    other.load(other.newest(), into)
    assert torch.equal(into["model.w"], tensors["model.w"])


def test_training_goes_on_while_a_copy_is_under_way_and_one_is_the_most(bucket, places):
    store = opened(places[0], bucket.uri)
    store.prepare()
    going = threading.Event()

    def hold(method, path):
        if method == "PUT" and "step-" in path:
            going.wait(20)

    bucket.server.fault = hold
    save(store, 1)  # returns although nothing can be stored
    assert bucket.whole() == []
    assert threading.active_count() > 1
    going.set()
    save(store, 2)
    assert 1 in bucket.whole()
    store.finish()
    assert bucket.whole() == [1, 2]
    store.close()


def test_load_path_may_be_a_step_or_a_folder_elsewhere(bucket, places):
    stored(places[0], bucket.uri, 1, 2)
    newest = fetch_checkpoint(bucket.uri, SoloRanks(), places[1], patience=patient())
    first = fetch_checkpoint(
        f"{bucket.uri}/step-000001/", SoloRanks(), places[1], patience=patient()
    )
    assert (newest.step, first.step) == (2, 1)
    with pytest.raises(CheckpointError, match=r"step-000009: manifest.json: missing"):
        fetch_checkpoint(f"{bucket.uri}/step-000009", SoloRanks(), places[1], patience=patient())
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        fetch_checkpoint(
            "s3://" + bucket.name + "/none", SoloRanks(), places[2], patience=patient()
        )


def test_any_address_of_fsspec(tmp_path, places):
    uri = f"file://{tmp_path}/elsewhere/run"
    stored(places[0], uri, 1, 2, 3, keep=2)
    there = tmp_path / "elsewhere" / "run"
    assert {path.parent.name for path in there.rglob("*.*")} == {"step-000002", "step-000003"}
    manifest = json.loads((there / "step-000003" / "manifest.json").read_bytes())["content"]
    for name, entry in manifest["files"].items():
        content = (there / "step-000003" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    path = there / "step-000003" / "state.json"
    path.write_bytes(path.read_bytes()[:-1])
    assert_newest(opened(places[1], uri), 2)


@pytest.mark.slow
def test_later_checkpoints_can_be_discarded_in_both_places(bucket, places):
    store = opened(places[0], bucket.uri)
    save(store, 1, 2, 3)
    store.finish()
    store.discard_after(1)
    store.close()
    assert bucket.whole() == [1]
    assert_newest(opened(places[1], bucket.uri), 1)


@pytest.mark.slow
def test_killed_at_any_moment_of_a_copy(bucket, places, forked):
    """The disk may be lost with the process: every other time it is."""
    stored(places[0], bucket.uri, 1, 2, keep=2)
    step, kills, advanced, folder = 3, 0, set(), places[0]
    for nth in range(1, 100):

        def work(step=step, nth=nth, folder=folder):
            os.environ[VARIABLE] = f"remote.*:{nth}:kill"
            store = opened(folder, bucket.uri, keep=2)
            save(store, step)
            store.finish()

        code = forked(work)
        assert code in {0, -signal.SIGKILL}
        if code == 0:
            break
        kills += 1
        if nth % 2:
            shutil.rmtree(folder)
        again = opened(folder, bucket.uri, keep=2)
        again.prepare()
        newest = again.newest()
        assert newest.step in {step - 1, step}
        advanced.add(newest.step == step)
        save(again, step)
        again.finish()
        again.close()
        assert bucket.whole()[-2:] == [step - 1, step]
        step += 1
    assert code == 0, "the loop ended before a save went through"
    assert kills > 10
    assert advanced == {False, True}


@pytest.mark.slow
def test_two_machines_that_share_no_disk(bucket, places, ranks):
    def first(peers):
        store = opened(places[peers.rank], bucket.uri, ranks=peers)
        save(store, 1, 2)
        store.finish()
        store.close()

    assert ranks(2, first) == [0, 0]
    assert bucket.whole() == [1, 2]
    here, there = (set(os.listdir(place / "step-000002")) for place in places[:2])
    assert {"rank-00000.json", "state.json"} <= here
    assert "rank-00001.json" in there - here
    assert here | there == bucket.files(2)

    def again(peers):
        store = opened(places[peers.rank * 2], bucket.uri, ranks=peers)  # one disk is new
        store.prepare()
        assert_newest(store, 2)
        save(store, 3)
        store.finish()
        store.close()

    assert ranks(2, again) == [0, 0]
    assert bucket.whole() == [1, 2, 3]
    assert_newest(opened(places[1] / "elsewhere", bucket.uri), 3)


def test_ranks_agree_on_a_copy_that_failed(bucket, places, ranks):
    def work(peers):
        store = opened(places[0], bucket.uri, ranks=peers, attempts=2)
        save(store, 1)
        os.environ[VARIABLE] = "remote.commit:1:eio"
        save(store, 2)
        save(store, 3)  # waits for the copy of 2, which failed, and tries it again
        store.finish()
        store.close()
        assert store._pending == set()
        assert store._stored == {1, 2, 3}

    assert ranks(2, work) == [0, 0]
    assert bucket.whole() == [1, 2, 3]


def test_a_store_that_fails_to_the_end_fails_every_rank(bucket, places, ranks):
    bucket.server.fault = lambda method, path: (
        "503" if method == "PUT" and path.endswith("manifest.json") else None
    )

    def work(peers):
        store = opened(places[0], bucket.uri, ranks=peers, attempts=2)
        save(store, 1)
        with pytest.raises(CheckpointWriteError, match="step-000001: not stored"):
            store.finish()
        store.close()

    assert ranks(2, work) == [0, 0]
    assert bucket.whole() == []
    assert "step-000001" in os.listdir(places[0])


@pytest.mark.slow
def test_a_run_that_fails_does_not_wait_for_a_copy_that_hangs(bucket, places, caplog):
    store = opened(places[0], bucket.uri, deadline=600.0)
    store.prepare()
    bucket.server.fault = lambda method, path: "hang" if "step-" in path else None
    save(store, 1)
    store.close()  # as in the ``finally`` of a run whose loop raised
    bucket.server.release.set()
    assert "is broken off; it is whole in" in caplog.text
    bucket.server.fault = lambda method, path: None
    again = opened(places[0], bucket.uri)
    again.prepare()
    assert_newest(again, 1)
    again.finish()
    again.close()
    assert bucket.whole() == [1]


@pytest.mark.slow
def test_whatever_a_server_does_only_whole_checkpoints_are_found(bucket, tmp_path):
    """Requests fail at random in every way there is; what is found is always what was saved."""
    generator = random.Random(7)  # noqa: S311
    faults, failed, stored_before = [], 0, 0

    def random_fault(method, path):
        if bucket.name in path and generator.random() < 0.25:
            faults.append(generator.choice(["503", "cut", "hang"]))
            return faults[-1]
        return None

    bucket.server.release.set()  # a hang ends in 503, so that no thread is left behind
    for step in range(1, 31):
        bucket.server.fault = random_fault
        store = opened(tmp_path / f"disk-{step}", bucket.uri, keep=2, attempts=3)
        try:
            save(store, step)
            store.finish()
        except CheckpointError:
            failed += 1
        else:
            stored_before = step
        finally:
            store.close()
        try:
            found = opened(tmp_path / f"other-{step}", bucket.uri, attempts=3).newest()
        except RemoteStoreError:
            failed += 1
        else:
            assert (found.step if found else 0) >= stored_before
        bucket.server.fault = lambda method, path: None
        if stored_before:
            newest = opened(tmp_path / f"third-{step}", bucket.uri).newest()
            assert newest.step >= stored_before
            assert_newest(opened(tmp_path / f"third-{step}", bucket.uri), newest.step)
    assert len(faults) > 100
    assert set(faults) == {"503", "cut", "hang"}
    assert 0 < failed < 60
    assert stored_before > 0


@pytest.mark.slow
def test_old_checkpoints_that_cannot_be_deleted_are_told_and_no_reason_to_fail(
    bucket, places, caplog
):
    store = opened(places[0], bucket.uri, keep=2, attempts=2)
    save(store, 1, 2)
    store.finish()
    bucket.server.fault = lambda method, path: "503" if method == "DELETE" else None
    save(store, 3)
    store.finish()
    assert "cannot delete step-000001/manifest.json" in caplog.text
    assert "old ones stay in the store" in caplog.text
    assert bucket.whole() == [1, 2, 3]
    bucket.server.fault = lambda method, path: None
    save(store, 4)
    store.finish()
    store.close()
    assert bucket.whole() == [3, 4]
