import numpy as np
import torch

from foundry_sdk.batch import IGNORE_INDEX
from foundry_sdk.data.collate import (
    LanguageModelingCollator,
    sequence_ids_of,
    shift_labels,
    stack_rows,
)

EOS, BOS, PAD = 0, 2, 1


def ids(*rows):
    return torch.tensor(rows)


def test_labels_are_what_follows_and_nothing_follows_the_last():
    targets = ids([5, 6, 7, 8], [9, IGNORE_INDEX, 3, 4])
    expected = ids([6, 7, 8, IGNORE_INDEX], [IGNORE_INDEX, 3, 4, IGNORE_INDEX])
    assert torch.equal(shift_labels(targets), expected)


def test_labels_are_those_that_transformers_makes_of_its_own():
    """Its causal models take unshifted labels and shift inside the loss."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    torch.manual_seed(0)
    logits = torch.randn(2, 5, 11)
    targets = torch.randint(0, 11, (2, 5))
    targets[0, 3] = IGNORE_INDEX
    ours = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), shift_labels(targets).flatten(), ignore_index=IGNORE_INDEX
    )
    assert torch.allclose(ours, ForCausalLMLoss(logits, targets, vocab_size=11))


def test_full_rows_have_no_mask():
    rows = [np.array([5, 6, 7], np.int32), np.array([8, 9, 10, 11], np.int32)]
    input_ids, mask = stack_rows(rows, length=3, fill=PAD)
    assert torch.equal(input_ids, ids([5, 6, 7], [8, 9, 10]))
    assert input_ids.dtype == torch.int64
    assert mask is None


def test_short_rows_are_filled_on_the_right():
    input_ids, mask = stack_rows([np.array([5]), np.array([], np.int64)], length=2, fill=PAD)
    assert torch.equal(input_ids, ids([5, PAD], [PAD, PAD]))
    assert mask is not None
    assert mask.tolist() == [[True, False], [False, False]]


def test_read_only_rows_are_copied():
    row = np.frombuffer(np.arange(4, dtype=np.int32).tobytes(), np.int32)
    assert not row.flags.writeable
    input_ids, _ = stack_rows([row], length=4, fill=PAD)
    input_ids += 1
    assert row.tolist() == [0, 1, 2, 3]


def documents_by_hand(row, eos=None, bos=None):
    """Number the documents by walking along the row."""
    number, numbers = 0, []
    for token in row:
        number += token == bos
        numbers.append(number)
        number += token == eos
    return numbers


def test_documents_are_numbered_as_by_walking_along_the_row():
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (50, 17)))
    by_eos = sequence_ids_of(rows, attention_mask=None, eos_token_id=EOS)
    by_bos = sequence_ids_of(rows, attention_mask=None, bos_token_id=BOS)
    assert by_eos.tolist() == [documents_by_hand(row, eos=EOS) for row in rows.tolist()]
    assert by_bos.tolist() == [documents_by_hand(row, bos=BOS) for row in rows.tolist()]


def test_documents_are_not_numbered_unless_asked():
    assert sequence_ids_of(ids([1, 2]), attention_mask=None) is None


def test_padding_is_in_no_document():
    mask = torch.tensor([[True, True, False]])
    assert sequence_ids_of(ids([EOS, 7, PAD]), attention_mask=mask, eos_token_id=EOS).tolist() == [
        [0, 1, -1]
    ]


def test_end_of_sequence_is_learned_even_where_it_is_the_padding_too():
    collate = LanguageModelingCollator(length=5, fill=EOS)
    batch = collate([np.array([7, EOS, 8, EOS])], torch.tensor([3]))
    assert batch.labels.tolist() == [[EOS, 8, EOS, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[True, True, True, True, False]]


def test_a_row_that_only_fills_the_batch_has_no_labels():
    collate = LanguageModelingCollator(length=3, fill=EOS, eos_token_id=EOS)
    batch = collate([np.array([7, 8, 9]), None], torch.tensor([3, -1]))
    assert batch.labels.tolist() == [[8, 9, IGNORE_INDEX], [IGNORE_INDEX] * 3]
    assert batch.attention_mask is None  # a row that is masked as a whole would make NaN
    assert batch.label_count() == 2
    assert batch.sample_ids.tolist() == [3, -1]
