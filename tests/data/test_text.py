"""The text loader in one process: what is in its batches, how it goes on, what it refuses."""

import numpy as np
import pytest
import torch

from foundry_sdk.batch import IGNORE_INDEX
from foundry_sdk.data.card import DataCard
from foundry_sdk.data.text import TextDatasetSpec, TextDataSpec
from foundry_sdk.data.tokenizer import fingerprint
from foundry_sdk.errors import DataError


def spec(folder, *, workers=0, drop_last=True, loader=(), **dataset):
    return TextDataSpec(
        dataset=TextDatasetSpec(local=str(folder), **dataset),
        drop_last=drop_last,
        num_workers=workers,
        **dict(loader),
    )


@pytest.fixture
def opened():
    """Return a function that builds a source and closes it at the end of the test."""
    sources = []

    def build(loader, context):
        sources.append(loader.build(context))
        return sources[-1]

    yield build
    for source in sources:
        source.close()


def numbers(batches):
    return [batch.sample_ids.tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_come_as_they_were_written_with_their_numbers(
    mds, token_rows, context, opened, workers
):
    rows = token_rows(25)
    source = opened(spec(mds(rows), workers=workers), context())
    batches = list(source)
    assert numbers(batches) == np.arange(24).reshape(6, 4).tolist()
    assert source.batches_per_epoch() == 6
    for batch in batches:
        assert batch.input_ids.dtype == torch.int64
        assert np.array_equal(batch.input_ids.numpy(), rows[batch.sample_ids])
        assert torch.equal(batch.labels[:, :-1], batch.input_ids[:, 1:])
        assert (batch.labels[:, -1] == IGNORE_INDEX).all()
        assert batch.attention_mask is None
        assert batch.sequence_ids is None


@pytest.mark.parametrize("compression", ["zstd", "gz", "br"])
def test_compressed_shards_are_read(mds, token_rows, context, opened, compression):
    rows = token_rows(12)
    folder = mds(rows, compression=compression)
    batches = list(opened(spec(folder), context()))
    assert np.array_equal(torch.cat([batch.input_ids for batch in batches]).numpy(), rows)


def test_epochs_differ_and_each_is_whole(mds, context, opened):
    source = opened(spec(mds(24), shuffle=True), context())
    epochs = [numbers(source) for _ in range(3)]
    assert len({str(epoch) for epoch in epochs}) == 3
    for epoch in epochs:
        assert sorted(sample for batch in epoch for sample in batch) == list(range(24))


def test_an_epoch_that_is_left_early_is_over(mds, context, opened):
    folder = mds(24)
    whole = opened(spec(folder, shuffle=True), context())
    epochs = [numbers(whole), numbers(whole)]
    source = opened(spec(folder, shuffle=True, workers=2), context())
    first = iter(source)
    assert next(first).sample_ids.tolist() == epochs[0][0]
    assert numbers(source) == epochs[1]
    assert list(first) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_exactly_where_the_loop_was(mds, context, opened, workers):
    folder = mds(43)
    reference = opened(spec(folder, shuffle=True), context())
    expected = [numbers(reference), numbers(reference), numbers(reference)]
    first = opened(spec(folder, shuffle=True, workers=workers), context())
    assert numbers(first) == expected[0]
    batches = iter(first)
    assert [next(batches).sample_ids.tolist() for _ in range(3)] == expected[1][:3]
    state = first.state_dict()
    second = opened(spec(folder, shuffle=True, workers=workers), context())
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert numbers(second) == expected[1][3:]
    assert numbers(second) == expected[2]


def test_the_state_at_the_end_of_an_epoch_leads_to_the_next(mds, context, opened):
    folder = mds(24)
    first = opened(spec(folder, shuffle=True), context())
    list(first)
    state = first.state_dict()
    second = opened(spec(folder, shuffle=True), context())
    second.load_state_dict(state)
    assert numbers(second) == []
    assert numbers(second) == numbers(first)


def test_an_iterator_is_over_once_another_position_is_loaded(mds, context, opened):
    source = opened(spec(mds(24), shuffle=True), context())
    start = source.state_dict()
    old = iter(source)
    first = next(old).sample_ids.tolist()
    source.load_state_dict(start)
    assert list(old) == []
    assert numbers(source)[0] == first


def test_the_global_random_state_is_left_alone(mds, context, opened):
    source = opened(spec(mds(24), shuffle=True, workers=2), context())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(source)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_evaluation_is_the_same_pass_each_time(mds, context, opened):
    folder = mds(10)
    source = opened(spec(folder, drop_last=False, workers=2), context(training=False))
    next(iter(source))
    for _ in range(2):
        batches = list(source)
        assert numbers(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
        assert [batch.label_count() for batch in batches] == [28, 28, 14]
        assert all(len(batch) == 4 for batch in batches)


def test_rows_are_cut_and_filled_up(mds, context, opened):
    rows = [np.arange(5, 5 + length, dtype=np.int32) for length in (12, 8, 3)]
    (batch,) = opened(spec(mds(rows)), context(device_batch=3))
    assert batch.input_ids[0].tolist() == rows[0][:8].tolist()
    assert batch.attention_mask.sum(dim=1).tolist() == [8, 8, 3]
    assert batch.labels[2].tolist() == [6, 7] + [IGNORE_INDEX] * 6


def test_documents_are_numbered(mds, context, opened, bpe):
    eos = bpe.eos_token_id
    rows = [np.array([7, eos, 8, 9, eos, 10, 11, 12], np.int32)]
    folder = mds(rows)
    (batch,) = opened(spec(folder, eos_token_id=eos), context(device_batch=1))
    assert batch.sequence_ids.tolist() == [[0, 0, 1, 1, 1, 2, 2, 2]]
    with pytest.raises(DataError, match=r"eos_token_id is 9, but the tokenizer's is 0"):
        spec(folder, eos_token_id=9).build(context())
    meant = spec(folder, eos_token_id=9, override_eos_token_id_mismatch_error=True)
    (batch,) = opened(meant, context(device_batch=1))
    assert batch.sequence_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_text_is_tokenized_while_loading(mds, context, opened, bpe):
    texts = ["the cat sat on the mat", "the", "", "a much longer sentence than all the others"]
    source = opened(spec(mds(texts), workers=1), context())
    (batch,) = source
    theirs = bpe(texts, truncation=True, padding="max_length", max_length=8, return_tensors="pt")
    assert torch.equal(batch.input_ids, theirs.input_ids)
    assert torch.equal(batch.attention_mask, theirs.attention_mask.bool())
    follows = torch.roll(theirs.input_ids, -1, dims=1)
    learned = torch.roll(theirs.attention_mask, -1, dims=1).bool()
    learned[:, -1] = False
    assert torch.equal(batch.labels, follows.masked_fill(~learned, IGNORE_INDEX))


def test_text_without_a_padding_token_offers_choices(mds, context, bpe_folder):
    from foundry_sdk.data.contract import TokenizerSpec
    from foundry_sdk.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(TokenizerSpec(name=str(bpe_folder)))
    tokenizer.pad_token = None
    with pytest.raises(DataError, match=r"no padding token; choose one: .*pad_token: '<eos>'"):
        spec(mds(["a"])).build(context(tokenizer=tokenizer))


def card(bpe, **changes):
    values = {
        "kind": "tokens", "split": "", "samples": 8, "documents": 3, "tokens": 64,
        "sequence_length": 8, "tokenizer": "theirs", "tokenizer_sha256": fingerprint(bpe),
    }  # fmt: skip
    return DataCard(**{**values, **changes})


def test_the_card_is_compared_with_the_run(mds, context, opened, bpe):
    folder = mds(8)
    card(bpe).write(folder)
    source = opened(spec(folder), context())
    assert source.describe()["streams"]["data"]["card"] == card(bpe).digest()
    card(bpe, tokenizer_sha256="f" * 64).write(folder)
    with pytest.raises(DataError, match=r"tokenizer 'theirs' \(sha256 f{64}\), but the run's is"):
        spec(folder).build(context())
    card(bpe, sequence_length=16).write(folder)
    with pytest.raises(DataError, match="--concat-tokens 16, but max_seq_len is 8"):
        spec(folder).build(context())


def test_a_token_that_the_tokenizer_does_not_know_is_named(mds, token_rows, context, opened):
    rows = token_rows(8)
    rows[5, 3] = 276
    source = opened(spec(mds(rows), workers=1), context())
    with pytest.raises(DataError, match=r"^sample 5: token id 276 is not in .*vocabulary of 276"):
        list(source)


def test_tokens_that_hold_no_such_vocabulary_are_refused(mds, context):
    rows = [np.arange(8, dtype=np.uint8)]
    folder = mds(rows, columns={"tokens": "ndarray:uint8"})
    with pytest.raises(DataError, match="tokens are uint8, which holds no vocabulary of 276"):
        spec(folder).build(context())


def test_tokens_of_raw_bytes_are_read_by_their_encoding(mds, context, opened):
    rows = [np.arange(5, 13, dtype=np.uint16).tobytes()]
    folder = mds(rows, columns={"tokens": "bytes"})
    source = opened(spec(folder, token_encoding_type="uint16"), context(device_batch=1))
    (batch,) = source
    assert batch.input_ids.tolist() == [list(range(5, 13))]


def test_other_columns_are_named(mds, context):
    folder = mds(["x"], columns={"prompt": "str"})
    with pytest.raises(DataError, match=r"needs a column tokens or text, found \['prompt'\]"):
        spec(folder).build(context())


def test_two_sequence_lengths_are_refused(mds, context):
    folder = mds(8)
    with pytest.raises(DataError, match=r"max_seq_len is 16, but the run's max_seq_len is 8"):
        spec(folder, max_seq_len=16).build(context())


def test_less_than_one_batch_is_refused(mds, context):
    folder = mds(3)
    with pytest.raises(DataError, match="3 samples an epoch, less than one global batch of 4"):
        spec(folder).build(context())


@pytest.mark.parametrize(
    "changed", [{"shuffle_seed": 1}, {"shuffle": False}, {"num_canonical_nodes": 2}]
)
def test_another_order_than_that_of_the_saved_run_is_refused(mds, context, opened, changed):
    folder = mds(24)
    state = opened(spec(folder, shuffle=True), context()).state_dict()
    other = opened(spec(folder, **{"shuffle": True, **changed}), context())
    with pytest.raises(DataError, match=next(iter(changed))):
        other.load_state_dict(state)


def test_a_batch_size_that_the_position_does_not_fit_is_refused(mds, context, opened):
    folder = mds(24)
    source = opened(spec(folder), context())
    next(iter(source))
    other = opened(spec(folder), context(device_batch=3))
    with pytest.raises(DataError, match=r"after 4 samples of the epoch, .* global batch of 3"):
        other.load_state_dict(source.state_dict())


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("mlm_probability", 0.15, "masked language modelling"),
        ("batch_size", 3, "global_train_batch_size"),
        ("allow_unsafe_types", True, "can run code"),
        ("replication", 2, "its own samples"),
        ("seq_parallel_replication", 2, "sequence parallelism"),
        ("split", "../up", "a folder inside"),
        ("cache_limit", "lots", "10gb"),
        ("epoch_size", 0, "number > 0"),
        ("shuffle_seed", -1, "shuffle_seed"),
    ],
)
def test_values_that_can_have_no_effect_are_refused(key, value, reason):
    with pytest.raises(ValueError, match=reason):
        TextDatasetSpec(local="x", **{key: value})


def test_eos_and_bos_at_once_are_refused():
    with pytest.raises(ValueError, match="only one of eos_token_id and bos_token_id"):
        TextDatasetSpec(local="x", eos_token_id=0, bos_token_id=2)
