"""Model and loss as one module: what is compiled, sharded and called."""

from torch import nn

from foundry_sdk.batch import Batch, LossOutput
from foundry_sdk.errors import SpecError
from foundry_sdk.losses.module import HeadLoss, LogitsLoss
from foundry_sdk.models.language_model import LanguageModel


class Objective(nn.Module):
    """``Batch`` in, sum of losses and number of labels out.

    One module, because a fused loss reads the head's weight inside ``forward``: the only moment
    at which a sharded weight is whole.
    """

    def __init__(self, model: LanguageModel, loss: LogitsLoss | HeadLoss) -> None:
        super().__init__()
        if isinstance(loss, HeadLoss) and model.head_weight() is None:
            raise SpecError(
                f"loss: {type(loss).__name__} makes the logits itself, but {type(model).__name__} "
                "has no plain head; use loss: {name: torch_crossentropy}"
            )
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> LossOutput:
        """Return the loss over ``batch`` (a microbatch on the device)."""
        hidden_states = self.model(batch)
        if isinstance(self.loss, HeadLoss):
            return self._head_loss(hidden_states, batch)
        output: LossOutput = self.loss(self.model.logits(hidden_states), batch.labels)
        return output

    def _head_loss(self, hidden_states: object, batch: Batch) -> LossOutput:
        output: LossOutput = self.loss(
            hidden_states,
            self.model.head_weight(),
            batch.labels,
            scale=self.model.head_scale(),
            softcap=self.model.head_softcap(),
        )
        return output
