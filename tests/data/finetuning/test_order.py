"""One order of examples, whatever the ranks, the kind of file, and how often a run was stopped."""

import attrs
import pytest
import torch

from foundry_sdk.errors import DataError

FIELDS = ("input_ids", "labels", "attention_mask", "sequence_ids", "position_ids", "sample_ids")


def rows_of(batches):
    """Return (sample id, ids, labels) of each row, in order."""
    return [
        (int(s), tuple(i.tolist()), tuple(t.tolist()))
        for b in batches
        for s, i, t in zip(b.sample_ids, b.input_ids, b.labels, strict=True)
    ]


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for name in FIELDS:
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None)
            assert x is None or (x.dtype == y.dtype and torch.equal(x, y)), name


def test_an_epoch_has_each_example_once_and_the_next_another_order(source, prompts):
    built = source(prompts(23), shuffle=True, batch=4)
    first, second = list(built), list(built)
    assert built.batches_per_epoch() == len(first) == len(second) == 6
    ids = [[s for s, *_ in rows_of(batches)] for batches in (first, second)]
    assert sorted(ids[0]) == sorted(ids[1]) == [-1, *range(23)]
    assert ids[0] != ids[1]
    filler = first[-1].sample_ids == -1
    assert (first[-1].labels[filler] == -100).all()
    assert first[-1].attention_mask[filler].sum() == 1


@pytest.mark.parametrize("packing", [None, 3])
def test_ranks_share_the_rows_of_one(source, prompts, packing):
    options = {"shuffle": True, "packing_ratio": packing}
    whole = source(prompts(50), batch=8, **options)
    parts = [source(prompts(50), batch=4, rank=r, world_size=2, **options) for r in (0, 1)]
    for _ in range(2):
        for one, *shared in zip(whole, *parts, strict=True):
            assert sorted(rows_of([one])) == sorted(rows_of(shared))
    assert whole.state_dict() == parts[0].state_dict() == parts[1].state_dict()


@pytest.mark.parametrize("packing", [None, 3])
@pytest.mark.parametrize("taken", [0, 3, 6, 8])
def test_resuming_goes_on_exactly_on_any_number_of_ranks(source, prompts, packing, taken):
    options = {"shuffle": True, "packing_ratio": packing, "loader": {"drop_last": True}}
    count = 50 if packing is None else 150
    through = source(prompts(count), batch=8, **options)
    expected = [batch for _ in range(3) for batch in through]
    stopped = source(prompts(count), batch=8, **options)
    batches = (batch for _ in range(3) for batch in stopped)
    for _ in range(taken):
        next(batches)
    state = stopped.state_dict()
    resumed = source(prompts(count), batch=8, **options)
    resumed.load_state_dict(state)
    rest = [batch for _ in range(3) for batch in resumed][: len(expected) - taken]
    same(rest, expected[taken:][: len(rest)])
    for rank in (0, 1):
        half = source(prompts(count), batch=4, rank=rank, world_size=2, **options)
        half.load_state_dict(state)
        batch = next(batch for _ in range(3) for batch in half)
        assert set(rows_of([batch])) <= set(rows_of([expected[taken]]))


def test_a_position_of_other_data_or_another_batch_is_refused(source, prompts):
    built = source(prompts(30), batch=4)
    next(iter(built))
    state = built.state_dict()
    with pytest.raises(DataError, match=r"sources: .* then"):
        source(prompts(31), batch=4).load_state_dict(state)
    with pytest.raises(DataError, match="shuffle: False then, True now"):
        source(prompts(30), batch=4, shuffle=True).load_state_dict(state)
    with pytest.raises(DataError, match="no boundary of a global batch of 8"):
        source(prompts(30), batch=8).load_state_dict(state)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_tables_and_shards_give_the_same_bytes(  # noqa: PLR0917 - fixtures
    source, prompts, shards, tmp_path, shuffle, chat
):
    import csv
    import json

    import pyarrow.parquet
    from pyarrow import Table

    rows = prompts(40)
    rows[5] = {"prompt": "", "response": "dropped"}
    kinds = {"prompt": "str", "response": "str"}
    if chat:
        kinds = {"messages": "json"}
        rows = [
            {
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["response"]},
                ]
            }
            for row in rows
        ]
    options = {"shuffle": shuffle}
    expected = list(source(rows, **options))
    folder = shards(rows, kinds)
    same(list(source(local=str(folder), **options)), expected)
    fetched = {"remote": str(folder), "local": str(tmp_path / "copy")}
    same(list(source(**fetched, **options)), expected)
    pyarrow.parquet.write_table(Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    files = [("parquet", "rows.parquet"), ("json", "rows.json")]
    if not chat:
        with (tmp_path / "rows.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "response"])
            writer.writeheader()
            writer.writerows(row for row in rows if row["prompt"])
        files.append(("csv", "rows.csv"))
    for name, file in files:
        table = {"hf_name": name, "split": "train"}
        built = source(**table, hf_kwargs={"data_files": str(tmp_path / file)}, **options)
        if name != "csv":
            same(list(built), expected)
        elif not shuffle:  # a csv file without the row that is dropped: other numbers, same rows
            pairs = zip(list(built), expected, strict=True)
            assert all(torch.equal(a.input_ids, b.input_ids) for a, b in pairs)


def test_turns_that_were_tokenized_when_written_are_taken_as_they_are(source, shards, bpe, prompts):
    rows = prompts(9)
    ids = [
        {"input_ids": bpe(row["prompt"])["input_ids"], "labels": bpe(row["response"])["input_ids"]}
        for row in rows
    ]
    expected = list(source(rows))
    folder = shards([{"turns": [row]} for row in ids], {"turns": "json"})
    same(list(source(local=str(folder))), expected)
    bad = shards([{"turns": [{"input_ids": [9999], "labels": [1]}]}], {"turns": "json"}, "bad")
    with pytest.raises(DataError, match=r"sample 0: an id .* is not in the tokenizer's vocabulary"):
        source(local=str(bad))


def test_streams_are_mixed_in_their_shares_without_tokenizing_again(
    source, shards, prompts, caplog
):
    from foundry_sdk.data.streams import StreamSpec

    caplog.set_level("INFO")
    rows = prompts(60)
    columns = {"prompt": "str", "response": "str"}
    folders = [str(shards(part, columns, f"s{n}")) for n, part in enumerate((rows[:20], rows[20:]))]

    def counts(*options, epochs=1, **more):
        streams = {
            f"s{n}": StreamSpec(local=folder, **option)
            for n, (folder, option) in enumerate(zip(folders, options, strict=True))
        }
        built = source(streams=streams, batch=5, shuffle=True, **more)
        found = []
        for _ in range(epochs):
            ids = [s for s, *_ in rows_of(built)]
            found.append((sum(0 <= i < 20 for i in ids), sum(i >= 20 for i in ids), sorted(ids)))
        return found

    assert counts({}, {})[0][:2] == (20, 40)
    assert caplog.text.count("tokenized 20 examples") == 1
    caplog.clear()
    assert counts({"proportion": 1}, {"proportion": 1})[0][:2] == (30, 30)
    assert counts({"repeat": 2}, {"repeat": 0.5})[0][:2] == (40, 20)
    assert counts({"choose": 15}, {"choose": 5})[0][:2] == (15, 5)
    first, second = counts({"choose": 15}, {"choose": 5}, epochs=2)
    assert first[2] != second[2]
    first, second = counts({"choose": 15}, {"choose": 5}, epochs=2, sampling_method="fixed")
    assert first[2] == second[2]
    assert counts({"proportion": 3}, {"proportion": 1}, epoch_size=20)[0][:2] == (15, 5)
    assert "tokenized 20 examples" not in caplog.text


def test_the_same_dataset_with_other_options_is_not_tokenized_again(source, prompts, caplog):
    caplog.set_level("INFO")
    source(prompts(30))
    source(prompts(30), length=32, target_prompts="all", packing_ratio=2, shuffle=True)
    assert caplog.text.count("tokenized 30 examples") == 1
    assert "30 examples, tokenized before" in caplog.text


def test_too_few_examples_for_a_batch_are_an_error_only_where_the_tail_is_dropped(source, prompts):
    with pytest.raises(DataError, match="3 examples an epoch, less than the 4 of one global batch"):
        source(prompts(3), loader={"drop_last": True})
    (batch,) = source(prompts(3), loader={"drop_last": False})
    assert batch.sample_ids.tolist() == [0, 1, 2, -1]


def test_an_evaluation_is_the_same_pass_each_time(source, prompts):
    built = source(prompts(10), training=False, packing_ratio=2)
    first, second = list(built), list(built)
    same(first, second)
    assert [s for s, *_ in rows_of(first)] == [*range(10), -1, -1]


def test_a_killed_tokenization_goes_on_where_it_was(tmp_path):
    import numpy as np

    from foundry_sdk.data.finetuning.store import ExampleWriter, TokenizedExamples

    examples = [[(np.arange(n, dtype=np.int32), np.arange(3, dtype=np.int32))] for n in range(9)]
    writer = ExampleWriter(tmp_path / "x")
    writer.append(examples[:4], chat_template="chatml")
    with (tmp_path / "x" / "tokens.bin").open("ab") as file:  # cut off amid a write
        file.write(b"abcdef")
    writer = ExampleWriter(tmp_path / "x")
    assert writer.examples == 4
    writer.append(examples[4:])
    writer.finish({})
    plain = ExampleWriter(tmp_path / "y")
    plain.append(examples)
    plain.finish({})
    read, whole = (TokenizedExamples.read(tmp_path / name) for name in "xy")
    assert read.digest == whole.digest
    assert (read.chat_template, whole.chat_template) == ("chatml", None)
    assert [[p.tolist() for p in t] for n in range(9) for t in read.turns(n)] == [
        [list(range(n)), [0, 1, 2]] for n in range(9)
    ]
    (tmp_path / "x" / "tokens.bin").write_bytes(b"short")
    with pytest.raises(DataError, match="has another size"):
        TokenizedExamples.read(tmp_path / "x")


def test_batches_can_be_split_and_keep_every_field(source, prompts):
    batch = next(iter(source(prompts(9), packing_ratio=2, batch=4)))
    parts = list(batch.split(2))
    for field in attrs.fields(type(batch)):
        whole = getattr(batch, field.name)
        if whole is not None:
            assert torch.equal(torch.cat([getattr(p, field.name) for p in parts]), whole)


def test_sources_of_any_kind_are_mixed_by_weight_without_tokenizing_again(
    source, prompts, shards, jsonl, caplog
):
    from foundry_sdk.data.finetuning.spec import WeightedSourceSpec

    caplog.set_level("INFO")
    rows = prompts(60)
    folder = shards(rows[20:], {"prompt": "str", "response": "str"})
    strange = [{"q": row["prompt"], "a": row["response"]} for row in rows[:20]]
    table = {
        "hf_name": "json", "split": "train", "hf_kwargs": {"data_files": str(jsonl(strange))},
        "preprocessing_fn": {"prompt": "q", "response": "a"},
    }  # fmt: skip

    def mixed(first, second, **more):
        built = source(
            datasets={
                "table": WeightedSourceSpec(weight=first, **table),
                "shards": WeightedSourceSpec(weight=second, local=str(folder)),
            },
            batch=5,
            **more,
        )
        ids = [s for s, *_ in rows_of(built)]
        return sum(0 <= i < 20 for i in ids), sum(i >= 20 for i in ids)

    assert mixed(1, 2) == (20, 40)
    assert caplog.text.count(": tokenized ") == 2
    assert mixed(3, 1, epoch_size=40, shuffle=True) == (30, 10)
    assert caplog.text.count(": tokenized ") == 2
    same(list(source(datasets={
        "a": WeightedSourceSpec(weight=1, **table),
        "b": WeightedSourceSpec(weight=2, local=str(folder)),
    })), list(source(rows)))  # fmt: skip
    with pytest.raises(ValueError, match="split: with datasets, say it in each of them"):
        mixed(1, 1, split="train")
