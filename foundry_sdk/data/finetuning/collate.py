"""Examples, one or several a row → one padded batch."""

from collections.abc import Sequence
from typing import Literal

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundry_sdk.batch import IGNORE_INDEX, Batch
from foundry_sdk.data.collate import PADDING_SEQUENCE, shift_labels

Example = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Ids, and targets at their own places (a decoder) or labels (an encoder-decoder)."""

Padding = Literal["full", "longest", "trimmed"]
_MULTIPLE = 8


@attrs.frozen(kw_only=True)
class FinetuningCollator:
    """Makes batches.

    Attributes:
        length: of a row at most.
        pad: id of padding.
        side: where padding stands.
        padding: "full" = all rows have ``length``; "longest" = that of the longest row;
            "trimmed" = the longest row's, up to a multiple of 8, from the second batch on: the
            first shows what memory the longest rows would take.
        documents: give ``sequence_ids`` and ``position_ids``.
        encoder_decoder: examples are an encoder's ids and a decoder's labels.
    """

    length: int
    pad: int
    side: Literal["left", "right"] = "right"
    padding: Padding = "full"
    documents: bool = False
    encoder_decoder: bool = False

    def __call__(
        self, rows: Sequence[Sequence[Example]], sample_ids: Tensor, *, is_first: bool
    ) -> Batch:
        """Return the batch.

        Args:
            rows: examples of each, end to end; an empty row only fills the batch: one token
                that is seen and learned by nobody.
            sample_ids: int64 (rows,).
            is_first: it is the first batch of the run's first epoch.
        """
        if self.encoder_decoder:
            return self._apart(rows, sample_ids, is_first=is_first)
        joined = [self._join(row) for row in rows]
        width = self._width([len(row[0]) for row in joined], is_first=is_first)
        input_ids = self._stack([row[0] for row in joined], width, self.pad)
        targets = self._stack([row[1] for row in joined], width, IGNORE_INDEX)
        documents = self._stack([row[2] for row in joined], width, PADDING_SEQUENCE)
        positions = self._stack([row[3] for row in joined], width, 0)
        return Batch(
            input_ids=input_ids,
            labels=shift_labels(targets),
            attention_mask=documents != PADDING_SEQUENCE,
            sequence_ids=documents if self.documents else None,
            position_ids=positions if self.documents else None,
            sample_ids=sample_ids.clone(),
        )

    def _join(self, row: Sequence[Example]) -> tuple[NDArray[np.int64], ...]:
        """Return ids, targets, document numbers and positions, each (tokens of the row,)."""
        if not row:
            nothing = np.zeros(1, np.int64)
            return nothing + self.pad, nothing + IGNORE_INDEX, nothing, nothing
        ids, targets, documents, positions = [], [], [], []
        for number, (own_ids, own_targets) in enumerate(row):
            ids.append(own_ids)
            learned = own_targets.copy()
            learned[:1] = IGNORE_INDEX  # the token before is another example's, or none
            targets.append(learned)
            documents.append(np.full(len(own_ids), number, np.int64))
            positions.append(np.arange(len(own_ids)))
        return tuple(np.concatenate(part) for part in (ids, targets, documents, positions))

    def _apart(
        self, rows: Sequence[Sequence[Example]], sample_ids: Tensor, *, is_first: bool
    ) -> Batch:
        one = np.full(1, self.pad, np.int64)
        contexts = [row[0][0] if row else one for row in rows]
        answers = [row[0][1] if row else np.full(1, IGNORE_INDEX, np.int64) for row in rows]
        width = self._width([len(row) for row in contexts], is_first=is_first)
        present = [np.ones(len(row), np.int64) for row in contexts]
        labels = self._stack(
            answers, self._width([len(row) for row in answers], is_first=is_first), IGNORE_INDEX
        )
        decoder_input_ids = torch.full_like(labels, self.pad)
        decoder_input_ids[:, 1:] = labels[:, :-1]
        return Batch(
            input_ids=self._stack(contexts, width, self.pad),
            labels=labels,
            attention_mask=self._stack(present, width, 0).bool(),
            decoder_input_ids=decoder_input_ids.masked_fill_(
                decoder_input_ids == IGNORE_INDEX, self.pad
            ),
            sample_ids=sample_ids.clone(),
        )

    def _width(self, lengths: Sequence[int], *, is_first: bool) -> int:
        longest = max(lengths)
        if self.padding == "longest":
            return min(longest, self.length)
        if self.padding == "full" or is_first:
            return self.length
        return min(-(-longest // _MULTIPLE) * _MULTIPLE, self.length)

    def _stack(self, rows: Sequence[NDArray[np.int64]], width: int, fill: int) -> Tensor:
        table = np.full((len(rows), width), fill, np.int64)
        for number, row in enumerate(rows):
            if self.side == "right":
                table[number, : len(row)] = row
            elif len(row):
                table[number, -len(row) :] = row
        return torch.from_numpy(table)
