"""A decoder of the transformers library as a ``LanguageModel``."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foundry_sdk.batch import Batch
from foundry_sdk.models.huggingface.attention import unread_mask, why_not_isolated
from foundry_sdk.models.huggingface.model import HFModel, refuse_left_padding

if TYPE_CHECKING:
    from foundry_sdk.models.huggingface.skeleton import Skeleton


class HFCausalLM(HFModel):
    """A causal language model of transformers."""

    def forward(self, batch: Batch) -> Tensor:
        """Return hidden states (sequences, S, H); where the head is not plain, logits.

        Raises:
            ValueError: the rows are too long or padded on the left, or hold several documents
                that this model cannot keep apart.
        """
        longest = self.max_sequence_length()
        length = batch.input_ids.shape[1]
        if longest is not None and length > longest:
            raise ValueError(f"sequences of {length} tokens, but the model has {longest} positions")
        if batch.attention_mask is not None:
            refuse_left_padding(batch.attention_mask)
        called = self.model if self._head is None else self.model.base_model
        if batch.sequence_ids is None:
            # Causal attention keeps real tokens from seeing what comes after them, so padding on
            # the right needs no mask; with a mask of ones kernels take their fast path.
            mask = torch.ones_like(batch.input_ids, dtype=torch.bool)
            with unread_mask(self._attention, mask):
                output = called(input_ids=batch.input_ids, attention_mask=mask, use_cache=False)
        else:
            output = self._packed(called, batch.input_ids, batch.sequence_ids)
        answer: Tensor = output.logits if self._head is None else output[0]
        return answer.reshape(*batch.input_ids.shape, answer.shape[-1])

    def _look_at(self, skeleton: "Skeleton") -> None:
        self._why_not_isolated = why_not_isolated(skeleton.module)

    def _packed(self, called: Any, input_ids: Tensor, sequence_ids: Tensor) -> Any:  # noqa: ANN401
        if self._why_not_isolated is not None:
            raise ValueError(
                "the batch has several documents per row, and in "
                f"{type(self.model).__name__} they would see each other: {self._why_not_isolated}; "
                "leave packing out (packing_ratio, eos_token_id)"
            )
        positions = document_positions(sequence_ids)
        if self._attention.startswith("flash"):  # cuts one long row, and only one, by positions
            input_ids, positions = input_ids.reshape(1, -1), positions.reshape(1, -1)
        return called(input_ids=input_ids, position_ids=positions, use_cache=False)


def document_positions(sequence_ids: Tensor) -> Tensor:
    """Return positions int64 (B, S) that begin again with each document of a row.

    Args:
        sequence_ids: int64 (B, S); a document is a run of equal numbers.
    """
    places = torch.arange(sequence_ids.shape[1], device=sequence_ids.device)
    begins = torch.ones_like(sequence_ids, dtype=torch.bool)
    begins[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values
