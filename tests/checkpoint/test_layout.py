import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_sdk.checkpoint.files import FileEntry
from foundry_sdk.checkpoint.layout import (
    Manifest,
    TensorEntry,
    folder_name,
    step_folders,
    step_of,
    to_delete,
)
from foundry_sdk.errors import CheckpointError

MANIFEST = Manifest(
    step=12,
    world_size=2,
    versions={"torch": "2.13"},
    files={"a.safetensors": FileEntry(3, "ab" * 32)},
    tensors={"model.w": TensorEntry((2, 3), "float32"), "model.s": TensorEntry((), "int64")},
)


def test_a_manifest_is_read_as_it_was_written():
    assert Manifest.parse(MANIFEST.render()) == MANIFEST


def test_every_changed_byte_of_a_manifest_is_noticed():
    data = MANIFEST.render()
    for position in range(len(data)):
        for bit in (0, 5):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(CheckpointError, match="damaged"):
                Manifest.parse(bytes(damaged))


def test_every_truncation_of_a_manifest_is_noticed():
    data = MANIFEST.render()
    for length in range(len(data)):
        with pytest.raises(CheckpointError, match="damaged"):
            Manifest.parse(data[:length])


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ""])
def test_a_manifest_cannot_point_outside_its_folder(name):
    manifest = Manifest(
        step=1, world_size=1, versions={}, files={name: FileEntry(1, "0" * 64)}, tensors={}
    )
    with pytest.raises(CheckpointError, match="not the name of a file"):
        Manifest.parse(manifest.render())


def test_folders_are_ordered_by_step_not_by_name_or_time(tmp_path):
    for step in (999_999, 1_000_000, 7):
        (tmp_path / folder_name(step)).mkdir()
    (tmp_path / "step-000009.tmp-ab12cd34").mkdir()
    (tmp_path / "notes").mkdir()
    assert [step for step, _ in step_folders(tmp_path)] == [1_000_000, 999_999, 7]
    assert step_of(tmp_path / "step-000009.tmp-ab12cd34") is None


@given(
    whole=st.lists(st.booleans(), max_size=8),
    keep=st.integers(min_value=1, max_value=6),
)
def test_the_newest_and_two_whole_ones_stay_whatever_is_damaged(whole, keep):
    steps = list(range(len(whole), 0, -1))
    state = dict(zip(steps, whole, strict=True))
    gone = set(to_delete(steps, keep=keep, is_whole=state.__getitem__))
    left = [step for step in steps if step not in gone]
    assert left == steps[: len(left)]
    assert len(left) >= min(keep, len(steps))
    assert sum(state[step] for step in left) >= min(2, sum(whole))
    if sum(whole[:keep]) >= 2:
        assert len(left) == min(keep, len(steps))


def test_minus_one_keeps_all():
    assert to_delete([3, 2, 1], keep=-1, is_whole=lambda _: True) == ()
