"""Mixtures of several MDS folders: how much of each comes, and when."""

from collections import Counter

import pytest

from foundry_sdk.data.streams import ShardsSpec, StreamSpec
from foundry_sdk.data.text import TextDatasetSpec, TextDataSpec
from foundry_sdk.errors import DataError

SIZES = {"a": 40, "b": 24, "c": 16}


@pytest.fixture
def mixed(mds, context):
    """Return a function that draws epochs from three streams; the samples' names and numbers."""
    folders = {name: str(mds(size, name=name)) for name, size in SIZES.items()}

    def draw(amounts, *, epochs=1, **options):
        streams = {
            name: StreamSpec(local=folder, **amounts.get(name, {}))
            for name, folder in folders.items()
        }
        loader = TextDataSpec(
            dataset=TextDatasetSpec(streams=streams, **{"shuffle": True, **options}),
            num_workers=0,
            drop_last=False,
        )
        source = loader.build(context())
        drawn = [
            [[named(sample) for sample in batch.sample_ids.tolist()] for batch in source]
            for _ in range(epochs)
        ]
        report = source.describe()["streams"]
        source.close()
        return drawn, report

    return draw


def named(sample):
    """Turn a number among all samples into the stream's name and the number in the stream."""
    for name, size in SIZES.items():
        if 0 <= sample < size:
            return name, sample
        sample -= size
    return None


def flat(epoch):
    return [sample for batch in epoch for sample in batch if sample is not None]


def test_without_amounts_each_sample_comes_once(mixed):
    (epoch,), report = mixed({})
    samples = flat(epoch)
    assert sorted(samples) == [(name, n) for name, size in SIZES.items() for n in range(size)]
    assert {name: report[name]["taken"] for name in SIZES} == SIZES
    assert report["a"]["share"] == pytest.approx(0.5)


def test_proportions_are_kept_and_reported(mixed):
    wanted = {"a": 1, "b": 2, "c": 1}
    (epoch,), report = mixed({name: {"proportion": share} for name, share in wanted.items()})
    counts = Counter(name for name, _ in flat(epoch))
    assert counts == {"a": 20, "b": 40, "c": 20}
    assert {name: report[name]["taken"] for name in SIZES} == counts
    assert {name: report[name]["wanted_share"] for name in SIZES} == {
        "a": 0.25,
        "b": 0.5,
        "c": 0.25,
    }


def test_the_epoch_size_is_drawn_in_proportion(mixed):
    (epoch,), _ = mixed({name: {"proportion": 1} for name in SIZES}, epoch_size=30)
    assert Counter(name for name, _ in flat(epoch)) == {"a": 10, "b": 10, "c": 10}
    (epoch,), _ = mixed({}, epoch_size=20)
    assert Counter(name for name, _ in flat(epoch)) == {"a": 10, "b": 6, "c": 4}


def test_repeat_and_choose_count_samples(mixed):
    amounts = {"a": {"repeat": 0.5}, "b": {"repeat": 2}, "c": {"choose": 5}}
    (first, second), report = mixed(amounts, epochs=2)
    for epoch in (first, second):
        counts = Counter(flat(epoch))
        by_name = Counter(name for name, _ in flat(epoch))
        assert by_name == {"a": 20, "b": 48, "c": 5}
        assert {count for (name, _), count in counts.items() if name == "b"} == {2}
        assert max(count for (name, _), count in counts.items() if name != "b") == 1
    assert set(flat(first)) != set(flat(second)), "each epoch draws other samples"
    assert report["b"]["taken"] == 96


def test_fixed_sampling_draws_the_same_samples_each_epoch(mixed):
    amounts = {name: {"choose": 8} for name in SIZES}
    (first, second), _ = mixed(amounts, epochs=2, sampling_method="fixed")
    assert sorted(flat(first)) == sorted(flat(second))
    assert flat(first) != flat(second)


def test_stratified_batches_keep_the_proportions(mixed):
    amounts = {"a": {"proportion": 2}, "b": {"proportion": 1}, "c": {"proportion": 1}}
    (epoch,), _ = mixed(amounts, batching_method="stratified")
    whole = [batch for batch in epoch if None not in batch]
    assert len(whole) >= 19
    for batch in whole:
        assert Counter(name for name, _ in batch) == {"a": 2, "b": 1, "c": 1}


def test_per_stream_batches_are_of_one_stream(mixed):
    (epoch,), _ = mixed({}, batching_method="per_stream")
    assert {len({name for name, _ in batch}) for batch in epoch} == {1}
    assert Counter(batch[0][0] for batch in epoch) == {"a": 10, "b": 6, "c": 4}


def test_methods_that_leave_samples_out_are_refused_for_an_evaluation(mds, context):
    spec = TextDatasetSpec(local=str(mds(8)), batching_method="stratified")
    with pytest.raises(DataError, match="which an evaluation must not"):
        TextDataSpec(dataset=spec).build(context(training=False))


def test_tokens_and_text_are_not_mixed(mds, context):
    streams = {
        "ids": StreamSpec(local=str(mds(8, name="ids"))),
        "words": StreamSpec(local=str(mds(["the cat"], name="words"))),
    }
    with pytest.raises(DataError, match="either all have tokens or all have text"):
        TextDataSpec(dataset=TextDatasetSpec(streams=streams)).build(context())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "needs remote: or local:"),
        ({"local": "x", "repeat": 1, "choose": 2}, r"at most one of .*\['repeat', 'choose'\]"),
        ({"local": "x", "proportion": -1}, "proportion"),
        ({"local": "x", "split": "/train"}, "a folder inside"),
        ({"local": "x", "download_timeout": 0}, "download_timeout"),
    ],
)
def test_a_stream_that_contradicts_itself_is_refused(values, reason):
    with pytest.raises(ValueError, match=reason):
        StreamSpec(**values)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "needs either streams: or one of"),
        ({"local": "x", "streams": {"a": {}}}, "needs either streams: or one of"),
        ({"streams": {"a": {"proportion": 1}, "b": {}}}, r"\['b'\] have none"),
        ({"streams": {"a": {"proportion": 0}}}, "proportions are all 0"),
        ({"streams": {"a": {"repeat": 2}}, "epoch_size": 5}, "epoch_size contradicts"),
    ],
)
def test_streams_that_contradict_each_other_are_refused(values, reason):
    if "streams" in values:
        streams = {name: StreamSpec(local=name, **v) for name, v in values["streams"].items()}
        values = {**values, "streams": streams}
    with pytest.raises(ValueError, match=reason):
        ShardsSpec(**values)
