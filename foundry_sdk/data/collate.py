"""Rows of ids → one padded batch; the only place where labels are shifted."""

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundry_sdk.batch import IGNORE_INDEX, Batch

PADDING_SEQUENCE = -1
"""The ``sequence_ids`` of padding."""

NO_SAMPLE = -1
"""The ``sample_ids`` of a row that only fills a batch."""


def stack_rows(
    rows: Sequence[NDArray[Any]], *, length: int, fill: int
) -> tuple[Tensor, Tensor | None]:
    """Stack rows of ids, cut to ``length`` or filled up on the right.

    The rows are copied: they are read-only views of a shard.

    Args:
        rows: integers, each (ids of the row,).
        length: ids of each row of the result.
        fill: id that stands where a row has ended.

    Returns:
        ``input_ids`` int64 (rows, length), and ``attention_mask`` bool of the same shape, True
        where an id is the row's own; None when every row is full.
    """
    ids = np.full((len(rows), length), fill, np.int64)
    mask = np.zeros((len(rows), length), np.bool_)
    for number, row in enumerate(rows):
        kept = row[:length]
        ids[number, : len(kept)] = kept
        mask[number, : len(kept)] = True
    return torch.from_numpy(ids), None if mask.all() else torch.from_numpy(mask)


def shift_labels(targets: Tensor) -> Tensor:
    """Return labels: what follows each position.

    Args:
        targets: int64 (sequences, sequence length): the ids themselves, with ``IGNORE_INDEX``
            at those that nobody learns to predict.

    Returns:
        int64, same shape: ``labels[b, t] = targets[b, t + 1]``; nothing follows the last.
    """
    labels = torch.full_like(targets, IGNORE_INDEX)
    labels[:, :-1] = targets[:, 1:]
    return labels


def sequence_ids_of(
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None,
    eos_token_id: int | None = None,
    bos_token_id: int | None = None,
) -> Tensor | None:
    """Number the documents of each row by the token that ends, or begins, each.

    An end-of-sequence token belongs to the document that it ends, so the first document is 0. A
    beginning-of-sequence token belongs to the one that it begins: a row that starts with one
    starts with document 1, a row that starts amid a document with 0.

    Args:
        input_ids: int64 (sequences, sequence length).
        attention_mask: bool, same shape; None = no padding.
        eos_token_id: id that ends a document.
        bos_token_id: id that begins a document; not with ``eos_token_id``.

    Returns:
        int64, same shape, padding -1; None when neither id is given.
    """
    if eos_token_id is not None:
        ends = (input_ids == eos_token_id).long().cumsum(dim=1)
        sequence_ids = torch.zeros_like(input_ids)
        sequence_ids[:, 1:] = ends[:, :-1]
    elif bos_token_id is not None:
        sequence_ids = (input_ids == bos_token_id).long().cumsum(dim=1)
    else:
        return None
    if attention_mask is not None:
        sequence_ids = sequence_ids.masked_fill(~attention_mask, PADDING_SEQUENCE)
    return sequence_ids


@attrs.frozen(kw_only=True)
class LanguageModelingCollator:
    """Makes batches of rows in which every token is learned.

    Attributes:
        length: ids a row.
        fill: id of padding; never read, as the mask covers it.
        eos_token_id, bos_token_id: what tells documents apart, see ``sequence_ids_of``.
    """

    length: int
    fill: int
    eos_token_id: int | None = None
    bos_token_id: int | None = None

    def __call__(self, rows: Sequence[NDArray[Any] | None], sample_ids: Tensor) -> Batch:
        """Return the batch of ``rows``; a row None only fills the batch and has no labels.

        Args:
            rows: integers, each (ids of the row,), or None.
            sample_ids: int64 (rows,).
        """
        filler = np.full(self.length, self.fill, np.int64)
        input_ids, attention_mask = stack_rows(
            [filler if row is None else row for row in rows], length=self.length, fill=self.fill
        )
        targets = input_ids.clone()
        if attention_mask is not None:
            targets[~attention_mask] = IGNORE_INDEX
        targets[torch.tensor([row is None for row in rows], dtype=torch.bool)] = IGNORE_INDEX
        return Batch(
            input_ids=input_ids,
            labels=shift_labels(targets),
            attention_mask=attention_mask,
            sequence_ids=sequence_ids_of(
                input_ids,
                attention_mask=attention_mask,
                eos_token_id=self.eos_token_id,
                bos_token_id=self.bos_token_id,
            ),
            sample_ids=sample_ids.clone(),
        )
