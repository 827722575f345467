"""What travels from the data to the loss: one batch of tokens, and what a loss says of it."""

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import attrs
import torch
from torch import Tensor

IGNORE_INDEX: Final = -100
"""The label of a position that is not trained on."""


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """Sequences of one step (or one microbatch) with their labels, already shifted.

    Attributes:
        input_ids: int64 (sequences, sequence length).
        labels: int64, same shape; ``labels[b, t]`` is what follows ``input_ids[b, t]``, or
            ``IGNORE_INDEX``.
        attention_mask: bool, same shape, True = a real token; None = no padding.
        sequence_ids: int64, same shape, which packed document a token is of (padding: -1);
            None = one per row.
        position_ids: int64, same shape, where a token stands in its document (padding: 0);
            None = where it stands in its row.
        decoder_input_ids: int64, shaped as ``labels``; encoder-decoder models only.
        sample_ids: int64 (sequences,) on the CPU: the samples' numbers in the dataset.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None = None
    sequence_ids: Tensor | None = None
    position_ids: Tensor | None = None
    decoder_input_ids: Tensor | None = None
    sample_ids: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of sequences."""
        return self.input_ids.shape[0]

    def split(self, microbatch: int) -> Iterator["Batch"]:
        """Yield consecutive batches of ``microbatch`` sequences; the last may be smaller."""
        for start in range(0, len(self), microbatch):
            yield self._rows(slice(start, start + microbatch))

    def to(self, device: torch.device) -> "Batch":
        """Return this batch on ``device``; the copy from pinned memory does not wait.

        ``sample_ids`` stay on the CPU: nothing on the device reads them.
        """
        return self._mapped(
            lambda name, tensor: (
                tensor if name == "sample_ids" else tensor.to(device, non_blocking=True)
            )
        )

    def pin_memory(self) -> "Batch":
        """Return this batch in page-locked memory, from where copies to a GPU run beside work."""
        return self._mapped(lambda _, tensor: tensor.pin_memory())

    def label_count(self) -> int:
        """Return how many labels are trained on, over all sequences of this batch.

        Raises:
            ValueError: ``labels`` are on a GPU, where counting would wait for the device.
        """
        if self.labels.device.type != "cpu":
            raise ValueError("labels are counted on the CPU, before they move to a device")
        return int((self.labels != IGNORE_INDEX).sum())

    def token_count(self) -> int:
        """Return how many tokens are no padding (the count that throughput is measured in).

        Raises:
            ValueError: the batch is on a GPU.
        """
        if self.attention_mask is None:
            return self.input_ids.numel()
        if self.attention_mask.device.type != "cpu":
            raise ValueError("tokens are counted on the CPU, before they move to a device")
        return int(self.attention_mask.sum())

    def _rows(self, rows: slice) -> "Batch":
        return self._mapped(lambda _, tensor: tensor[rows])

    def _mapped(self, change: Callable[[str, Tensor], Tensor]) -> "Batch":
        """Return a batch of ``change(name, tensor)`` for each tensor that there is."""
        tensors = {field.name: getattr(self, field.name) for field in attrs.fields(Batch)}
        changed: dict[str, Any] = {
            name: None if tensor is None else change(name, tensor)
            for name, tensor in tensors.items()
        }
        return Batch(**changed)


class LossOutput(NamedTuple):
    """What a loss returns. A tuple, because FSDP and DDP look for tensors in tuples.

    Attributes:
        loss_sum: float32 (), nats summed over the labels that count.
        token_count: int64 (), how many those are.
    """

    loss_sum: Tensor
    token_count: Tensor
