"""The torch side of a model."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from foundry_sdk.batch import Batch


class LanguageModel(nn.Module, ABC):
    """A model that turns tokens into hidden states and hidden states into logits.

    The two halves are apart so that a loss may fuse the second one with the cross-entropy.

    Attributes:
        vocab_size: number of logits per token.
        encoder_decoder: reads ``input_ids`` with an encoder, and predicts ``labels`` from
            ``decoder_input_ids`` with a decoder.
    """

    vocab_size: int
    encoder_decoder: bool = False

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return hidden states (sequences, labels per sequence, H), ready for the head."""

    @abstractmethod
    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return logits (..., V) of hidden states (..., H)."""

    def head_weight(self) -> Tensor | None:
        """Return the head's weight (V, H) where ``logits == scale(hidden_states @ weight.T)``.

        ``scale`` is what ``head_scale`` and ``head_softcap`` say. None where logits are made in
        another way; a fused loss then cannot be used.
        """
        return None

    def head_scale(self) -> float:
        """Return the factor on the logits (before any softcap)."""
        return 1.0

    def head_softcap(self) -> float | None:
        """Return c where logits are ``c * tanh(logits / c)``, else None."""
        return None

    def max_sequence_length(self) -> int | None:
        """Return the longest sequence that the model takes; None = no limit known here."""
        return None

    def blocks(self) -> list[nn.Module]:
        """Return the repeated blocks: what FSDP shards, compile and checkpointing repeat."""
        return []

    def recomputed_blocks(self) -> list[nn.Module]:
        """Return the blocks whose activations are recomputed where checkpointing them is on."""
        return self.blocks()

    def choices(self) -> dict[str, str]:
        """Return what was chosen where the spec leaves it open, by option (``model.…``)."""
        return {}

    @abstractmethod
    def init_weights(self, seed: int) -> None:
        """Fill every parameter and buffer in place.

        Each parameter is drawn whole from a CPU generator seeded by (``seed``, its name), so the
        values depend neither on the device nor on how many there are. Parameters may be
        ``DTensor``s; each rank then keeps its own part of the same whole.
        """

    def in_checkpoint(self, name: str) -> bool:
        """Return whether checkpoints hold a parameter; others must come from ``init_weights``."""
        del name
        return True

    def config(self) -> dict[str, Any]:
        """Return what is needed to build this model again, as JSON values."""
        return {}
