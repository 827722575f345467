"""Packing: whole examples, the reference's bins, and the same loss as apart."""

import numpy as np
import pytest
import torch

from foundry_sdk.data.finetuning.packing import Bin, find_ratio, pack, pack_epoch
from foundry_sdk.errors import SpecError

LEARNED = {"alibi": False}
ROPE = {"rope": True, "rope_impl": "hf"}


def by_hand(numbers, lengths, leftovers, keep, *, rows=4, room=32):
    """First fit, longest first; a bin that takes one goes to the end of the list."""
    bins = [[size, list(members)] for size, members in leftovers]
    waiting = sorted(zip(numbers, lengths, strict=True), key=lambda each: -each[1])
    while waiting:
        if len(bins) < rows and len(waiting) <= rows - len(bins):
            bins += [[length, [number]] for number, length in waiting]
            break
        number, length = waiting.pop(0)
        fitting = [each for each in bins if each[0] + length <= room]
        if fitting:
            bins = [each for each in bins if each is not fitting[0]]
            bins.append([fitting[0][0] + length, [*fitting[0][1], number]])
        else:
            bins.append([length, [number]])
    bins.sort(key=lambda each: -each[0])
    return bins[:rows], bins[rows:][: len(bins) if keep is None else keep]


@pytest.mark.parametrize("keep", [None, 0, 1])
def test_bins_are_those_of_a_plain_first_fit(keep):
    rng = np.random.default_rng(5)
    left, plain_left = [], []
    for step in range(30):
        lengths = rng.integers(1, 33, rng.integers(1, 20)).tolist()
        numbers = [100 * step + n for n in range(len(lengths))]
        taken, left = pack(numbers, lengths, rows=4, room=32, leftovers=left, keep=keep)
        plain, plain_left = by_hand(numbers, lengths, plain_left, keep)
        assert [[b.size, b.members] for b in taken] == plain
        assert [[b.size, b.members] for b in left] == plain_left
        assert all(b.size <= 32 for b in taken)
        assert len(taken) == 4 or len(lengths) < 4


def test_leftovers_are_first_in_line_and_are_not_changed():
    waiting = [Bin(6, [1])]
    taken, left = pack([2, 3], [2, 5], rows=1, room=8, leftovers=waiting, keep=None)
    assert [b.members for b in taken] == [[1, 2]]
    assert [b.members for b in left] == [[3]]
    assert waiting == [Bin(6, [1])]


def test_an_epoch_reports_what_is_in_its_rows():
    packed = pack_epoch(np.array([5, 5, 3, 3, 8, 2]), raw=3, rows=1, room=8, keep=0, drop_last=True)
    assert packed.batches == [[[0, 2]], [[4]]]
    assert packed.efficiency == 1.0
    assert packed.waste == pytest.approx(1 - 16 / 26)


def test_auto_takes_the_largest_ratio_without_waste():
    lengths = np.full(4000, 100)
    assert find_ratio(lengths, rows=4, room=1000, keep=None) == 10
    assert find_ratio(lengths, rows=4, room=100, keep=None) == 1
    state = np.random.get_state()[1].tolist()
    uneven = np.random.RandomState(1).randint(50, 600, 4000)
    ratio = find_ratio(uneven, rows=4, room=1000, keep=0)
    assert 1 <= ratio < 1000 / uneven.mean()
    assert np.random.get_state()[1].tolist() == state


def test_rows_hold_whole_examples_each_in_its_own_place(source, prompts):
    rows = prompts(60)
    alone = {}
    for batch in source(rows):
        for number, ids, labels, mask in zip(
            batch.sample_ids, batch.input_ids, batch.labels, batch.attention_mask, strict=True
        ):
            alone[int(number)] = (ids[mask].tolist(), labels[mask].tolist())
    known = sorted(alone.values())
    found = []
    for batch in source(rows, packing_ratio=3, shuffle=True):
        for row in range(len(batch)):
            numbers = batch.sequence_ids[row]
            assert torch.equal(numbers == -1, ~batch.attention_mask[row])
            if batch.sample_ids[row] == -1:
                continue
            for document in range(int(numbers.max()) + 1):
                own = numbers == document
                ids, labels = batch.input_ids[row][own], batch.labels[row][own]
                assert batch.position_ids[row][own].tolist() == list(range(len(ids)))
                found.append((ids.tolist(), labels.tolist()))
    assert len(found) > 50
    assert all(each in known for each in found)


def model(**attention):
    from foundry_sdk.models.mpt.options import AttentionSpec
    from foundry_sdk.models.mpt.spec import MPTSpec

    spec = MPTSpec(
        d_model=16, n_heads=2, n_layers=2, max_seq_len=64, vocab_size=320,
        attn_config=AttentionSpec(attn_impl="torch", attn_uses_sequence_id=True, **attention),
    )  # fmt: skip
    built = spec.build(device="cpu").double()
    built.init_weights(1)
    return built


@pytest.mark.parametrize("attention", [LEARNED, {"alibi": True}, ROPE])
def test_packed_examples_have_the_loss_and_gradients_that_they_have_apart(
    source, prompts, attention
):
    from torch.nn.functional import cross_entropy

    rows = prompts(24)
    results = []
    for options in ({"isolates_documents": True}, {"packing_ratio": 4}):
        net = model(**attention)
        total, labels = 0.0, 0
        for batch in source(rows, batch=2, **options):
            logits = net.logits(net(batch))
            total += cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
            labels += batch.label_count()
        total.backward()
        results.append((total.item(), labels, [p.grad for p in net.parameters()]))
    apart, packed = results
    assert packed[1] == apart[1] > 0
    assert packed[0] == pytest.approx(apart[0], rel=1e-9)
    for one, other in zip(apart[2], packed[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_a_model_that_cannot_isolate_refuses_to_pack():
    from foundry_sdk import (
        AttentionSpec,
        DecoupledAdamWSpec,
        Duration,
        FinetuneSpec,
        FinetuningDatasetSpec,
        FinetuningDataSpec,
        LinearDecayWithWarmupSpec,
        MPTSpec,
        TokenizerSpec,
    )

    def spec(isolates, ratio):
        return FinetuneSpec(
            model=MPTSpec(attn_config=AttentionSpec(attn_uses_sequence_id=isolates)),
            tokenizer=TokenizerSpec(name="t"),
            optimizer=DecoupledAdamWSpec(lr=1e-3),
            scheduler=LinearDecayWithWarmupSpec(t_warmup=Duration.parse("0ba")),
            train_loader=FinetuningDataSpec(
                dataset=FinetuningDatasetSpec(hf_name="json", split="train", packing_ratio=ratio)
            ),
            max_duration="1ba",
            max_seq_len=64,
            global_train_batch_size=2,
        )

    spec(isolates=True, ratio="auto")
    spec(isolates=False, ratio=1)
    with pytest.raises(SpecError, match=r"packing_ratio: .*attn_uses_sequence_id: true"):
        spec(isolates=False, ratio=2.5)
