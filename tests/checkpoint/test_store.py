import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from foundry_sdk.checkpoint import writing
from foundry_sdk.checkpoint.layout import MANIFEST, STATE
from foundry_sdk.checkpoint.ranks import SoloRanks
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.errors import (
    CheckpointError,
    CheckpointWriteError,
    LockedRunError,
    NoSpaceError,
)
from foundry_sdk.faultpoints import VARIABLE


def tensors_of(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "model.w": torch.randn(5, 7, generator=generator),
        "model.b": torch.randn(7, generator=generator).bfloat16(),
        "model.count": torch.tensor(step, dtype=torch.int64),
        "model.mask": torch.rand(9, generator=generator) > 0.5,
        "optimizer.w.exp_avg": torch.randn(7, 5, generator=generator).t(),
    }


def save(store, step):
    return store.save(step, tensors_of(step), {"step": step, "loss": 0.1 + step}, {"seed": step})


def loaded(store, checkpoint):
    into = {name: torch.zeros_like(value) for name, value in tensors_of(0).items()}
    scalars, per_rank = store.load(checkpoint, into)
    return into, scalars, per_rank


def assert_is(store, checkpoint, step):
    into, scalars, per_rank = loaded(store, checkpoint)
    assert checkpoint.step == step
    for name, value in tensors_of(step).items():
        assert torch.equal(into[name], value), name
        assert into[name].dtype == value.dtype
    assert scalars == {"step": step, "loss": 0.1 + step}
    assert per_rank == {"seed": step}


@pytest.fixture
def store(folder):
    made = CheckpointStore(folder, SoloRanks())
    yield made
    made.close()


def test_what_was_saved_is_loaded_bit_for_bit(store):
    saved = save(store, 3)
    assert saved.path.name == "step-000003"
    assert saved.bytes == sum(
        path.stat().st_size for path in saved.path.iterdir() if path.name != MANIFEST
    )
    assert_is(store, store.newest(), 3)


def test_the_tensor_files_are_plain_safetensors(store):
    path = save(store, 3).path
    read = {}
    for file in path.glob("*.safetensors"):
        read |= load_file(file)
    for name, value in tensors_of(3).items():
        assert torch.equal(read[name].reshape(value.shape), value), name


def test_nothing_in_a_checkpoint_is_a_pickle(store):
    for path in save(store, 1).path.iterdir():
        assert path.suffix in {".json", ".safetensors"}
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        else:
            load_file(path)


class _Canary:
    def __reduce__(self):
        return (os.mkdir, ("fired",))


def test_a_planted_pickle_is_not_run(store, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = save(store, 1).path
    for name in (".metadata", "rng.pkl", "optimizer.bin"):
        (path / name).write_bytes(pickle.dumps(_Canary()))
    assert_is(store, store.newest(), 1)
    assert not (tmp_path / "fired").exists()


def test_the_newest_by_step_is_found_whatever_the_clock_said(store):
    for step in (5, 10, 15):
        path = save(store, step).path
        os.utime(path, (2e9 - step * 1e7, 2e9 - step * 1e7))
    assert_is(store, store.newest(), 15)
    assert store.steps() == (15, 10, 5)


def test_an_empty_folder_has_no_newest(store, folder):
    assert store.newest() is None
    folder.mkdir()
    assert store.newest() is None


def _files(path):
    return sorted(file.name for file in path.iterdir())


def test_every_file_s_flipped_byte_is_noticed_named_and_passed_over(store):
    save(store, 1)
    path = save(store, 2).path
    generator = torch.Generator().manual_seed(0)
    for name in _files(path):
        good = (path / name).read_bytes()
        for position in torch.randint(len(good), (50,), generator=generator).tolist():
            damaged = bytearray(good)
            damaged[position] ^= 0x10
            (path / name).write_bytes(damaged)
            assert store.newest().step == 1
            (skipped,) = store.skipped
            assert skipped.path == path
            assert name in skipped.reason
            with pytest.raises(CheckpointError, match=name):
                store.at(path)
        (path / name).write_bytes(good)
    assert store.newest().step == 2
    assert store.skipped == ()


def test_every_file_s_truncation_or_absence_is_noticed_and_passed_over(store):
    save(store, 1)
    path = save(store, 2).path
    for name in _files(path):
        good = (path / name).read_bytes()
        for length in (0, 1, len(good) // 2, len(good) - 1):
            (path / name).write_bytes(good[:length])
            assert store.newest().step == 1
            assert name in store.skipped[0].reason
        (path / name).unlink()
        assert store.newest().step == 1
        assert name in store.skipped[0].reason
        (path / name).write_bytes(good)


def test_a_tensor_file_of_elsewhere_is_refused(store):
    path = save(store, 1).path
    shutil.copy(next(path.glob("*.safetensors")), path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        store.at(path)


def test_with_only_damaged_ones_the_run_does_not_start_anew(store):
    for step in (1, 2):
        (save(store, step).path / STATE).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="none of them is whole") as caught:
        store.newest()
    assert "step-000001" in str(caught.value)
    assert "step-000002" in str(caught.value)


def test_a_step_is_not_written_twice_but_a_damaged_one_is_replaced(store):
    first = save(store, 1)
    inode = (first.path / STATE).stat().st_ino
    again = save(store, 1)
    assert not again.written
    assert (first.path / STATE).stat().st_ino == inode
    (first.path / STATE).write_bytes(b"{}")
    assert save(store, 1).written
    assert_is(store, store.newest(), 1)


@pytest.mark.parametrize(("keep", "left"), [(-1, 5), (1, 2), (2, 2), (3, 3)])
def test_old_ones_go_and_never_fewer_than_two_stay(folder, keep, left):
    store = CheckpointStore(folder, SoloRanks(), keep=keep)
    for step in range(1, 6):
        save(store, step)
    assert store.steps() == tuple(range(5, 5 - left, -1))
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == [
        f"step-{step:06d}" for step in range(6 - left, 6)
    ]


def test_damaged_ones_do_not_count_as_kept(folder):
    store = CheckpointStore(folder, SoloRanks())
    for step in range(1, 4):
        path = save(store, step).path
        if step > 1:
            (path / STATE).write_bytes(b"{}")
    store.close()
    resumed = CheckpointStore(folder, SoloRanks(), keep=2)
    save(resumed, 4)
    assert resumed.steps() == (4, 3, 2, 1)
    save(resumed, 5)
    assert resumed.steps() == (5, 4)


def test_discard_after_removes_another_course_of_the_run(store):
    for step in (1, 2, 3):
        save(store, step)
    assert [path.name for path in store.discard_after(1)] == ["step-000003", "step-000002"]
    assert store.newest().step == 1


def test_what_a_killed_save_left_is_removed_at_the_start(folder):
    left = folder / "step-000007.tmp-0123abcd"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    store = CheckpointStore(folder, SoloRanks())
    store.prepare()
    assert not left.exists()


def test_at_takes_a_step_folder_or_a_folder_of_them(store, folder):
    save(store, 1)
    path = save(store, 2).path
    assert store.at(path).step == 2
    assert store.at(path.with_name("step-000001")).step == 1
    assert store.at(folder).step == 2


def test_at_says_what_is_wrong_with_a_path(store, tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        store.at(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no checkpoint in this folder"):
        store.at(tmp_path)
    (tmp_path / "ep1-rank0.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="pickles"):
        store.at(tmp_path / "ep1-rank0.pt")
    (tmp_path / "step-000001").mkdir()
    with pytest.raises(CheckpointError, match=r"manifest\.json: missing"):
        store.at(tmp_path / "step-000001")


def test_another_model_s_tensors_are_named_with_both_shapes(store):
    save(store, 1)
    into = {f"model.x{number}": torch.zeros(1) for number in range(7)}
    into["model.w"] = torch.zeros(5, 8)
    with pytest.raises(CheckpointError) as caught:
        store.load(store.newest(), into)
    text = str(caught.value)
    assert "1 tensor(s) of another shape: model.w: [5, 7] in the checkpoint, [5, 8] here" in text
    assert "7 tensor(s) missing in the checkpoint: model.x0, model.x1" in text
    assert "model.x4, and 2 more" in text
    assert "4 tensor(s) of the checkpoint have no place here: model.b" in text


def test_a_prefix_and_strict_false_load_a_part(store, caplog):
    save(store, 1)
    checkpoint = store.newest()
    into = {"model.w": torch.zeros(5, 7), "model.new": torch.full((2,), 3.0)}
    store.load(checkpoint, into, prefix="model.", strict=False)
    assert torch.equal(into["model.w"], tensors_of(1)["model.w"])
    assert torch.equal(into["model.new"], torch.full((2,), 3.0))
    assert "model.new" in caplog.text
    with pytest.raises(CheckpointError, match="another shape"):
        store.load(checkpoint, {"model.w": torch.zeros(7, 5)}, prefix="model.", strict=False)


def test_values_that_are_not_json_are_refused_and_nothing_stays(store, folder):
    save(store, 1)
    with pytest.raises(CheckpointWriteError, match=r"state\.json: not a JSON value"):
        store.save(2, tensors_of(2), {"x": object()}, {})
    assert _files(folder) == [".lock", "step-000001"]


@pytest.mark.parametrize("keep", [0, -2])
def test_keeping_none_is_refused(folder, keep):
    with pytest.raises(CheckpointError, match="save_num_checkpoints_to_keep"):
        CheckpointStore(folder, SoloRanks(), keep=keep)


def test_a_remote_folder_is_refused():
    with pytest.raises(CheckpointError, match="MirroredStore"):
        CheckpointStore("s3://bucket/run", SoloRanks())


def test_a_folder_that_cannot_be_made_fails_in_prepare(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        CheckpointStore(tmp_path / "file" / "checkpoints", SoloRanks()).prepare()
    assert caught.value.exit_code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_fails_in_prepare(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(CheckpointError, match="cannot be written"):
        CheckpointStore(tmp_path, SoloRanks()).prepare()


def _hold(folder, ready, done):
    store = CheckpointStore(folder, SoloRanks())
    store.prepare()
    ready.set()
    done.wait(60)


def test_a_second_writer_is_refused_until_the_first_dies(folder):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(folder, ready, done))
    holder.start()
    assert ready.wait(60)
    store = CheckpointStore(folder, SoloRanks())
    with pytest.raises(LockedRunError, match=rf"process {holder.pid} on "):
        store.prepare()
    holder.kill()
    holder.join()
    save(store, 1)
    assert store.newest().step == 1


def test_too_little_room_is_found_before_writing(store, folder, monkeypatch):
    save(store, 1)
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NoSpaceError, match="free") as caught:
        save(store, 2)
    assert str(folder) in str(caught.value)
    assert caught.value.exit_code == 75
    assert store.newest().step == 1
    assert _files(folder) == [".lock", "step-000001"]


def test_a_full_disk_keeps_the_older_checkpoint(store, folder, forked):
    save(store, 1)
    store.close()

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        own = CheckpointStore(folder, SoloRanks())
        with pytest.raises(NoSpaceError, match="save_num_checkpoints_to_keep"):
            save(own, 2)
        assert _files(folder) == [".lock", "step-000001"]

    assert forked(work) == 0
    assert store.newest().step == 1


@pytest.mark.parametrize(
    ("action", "kind"), [("eio", CheckpointWriteError), ("enospc", NoSpaceError)]
)
def test_a_failed_write_anywhere_leaves_one_whole_and_the_next_save_works(
    folder, monkeypatch, action, kind
):
    store = CheckpointStore(folder, SoloRanks(), keep=2)
    for step in (1, 2):
        save(store, step)
    step, failures = 3, 0
    for nth in range(1, 100):
        monkeypatch.setenv(VARIABLE, f"checkpoint.*:{nth}:{action}")
        # A new variable counts from the start; see faultpoints.
        try:
            save(store, step)
            failed = False
        except kind:
            failed = True
        monkeypatch.delenv(VARIABLE)
        failures += failed
        newest = store.newest()
        assert store.skipped == ()
        assert newest.step in {step - 1, step}
        assert_is(store, newest, newest.step)
        if not failed and nth > 25:
            break
        save(store, step)
        assert_is(store, store.newest(), step)
        step += 1
    assert failures > 10
