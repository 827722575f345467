"""What every model spec promises."""

from abc import abstractmethod
from typing import TYPE_CHECKING

import attrs

from foundry_sdk.component import ComponentSpec

if TYPE_CHECKING:
    from foundry_sdk.models.language_model import LanguageModel


@attrs.frozen(kw_only=True)
class ModelSpec(ComponentSpec):
    """Family of models."""

    family = "model"

    @abstractmethod
    def build(self, *, device: str) -> "LanguageModel":
        """Return the model with float32 parameters on ``"cpu"``, ``"cuda:3"`` or ``"meta"``.

        The values are not promised: assembly calls ``init_weights`` or loads a checkpoint.
        """

    def check_device(self, device_type: str) -> None:
        """Refuse a device that this model cannot be trained on as it is described.

        Args:
            device_type: ``"cpu"`` or ``"cuda"``.

        Raises:
            SpecError: with what to change.
        """
        del device_type

    def flops_per_token(self, sequence_length: int) -> int | None:
        """Return the FLOPs of forward and backward for one token; None = not known here."""
        del sequence_length
        return None

    def parameters(self) -> int | None:
        """Return the number of parameters, tied ones once; None = not known without building."""
        return None

    def max_sequence_length(self) -> int | None:
        """Return the longest sequence that the model takes; None = no limit known here."""
        return None

    def isolates_documents(self) -> bool | None:
        """Return whether tokens of one row see only their own document, by ``sequence_ids``.

        None = not known here. A model that does not is given one document a row.
        """
        return None

    def encoder_decoder(self) -> bool:
        """Return whether the model reads with an encoder and learns with a decoder.

        As ``LanguageModel.encoder_decoder`` of what is built, but known before it is: data is
        opened first.
        """
        return False

    def vocabulary(self) -> int | None:
        """Return the number of token ids that the model knows; None = not known here."""
        return None

    def for_vocabulary(self, tokens: int) -> "ModelSpec":
        """Return this spec with room for ``tokens`` token ids, where it says that it may grow.

        Assembly asks before it builds, with the tokenizer's size; so does whoever loads a trained
        model.
        """
        del tokens
        return self
