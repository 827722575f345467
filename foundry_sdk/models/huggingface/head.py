"""How a transformers model makes logits of hidden states: asked of its own forward."""

from typing import Any, Final

import attrs
import torch
from torch import Tensor, nn

_ROWS: Final = 8
_FAILURES: Final = (
    *(AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError),
)


@attrs.frozen(kw_only=True)
class Head:
    """Logits are ``softcap * tanh(scale * (hidden_states @ weight.T) / softcap)``.

    Attributes:
        scale: factor on the product.
        softcap: None = the logits are not capped.
    """

    scale: float
    softcap: float | None

    def apply(self, product: Tensor) -> Tensor:
        """Return the logits of ``hidden_states @ weight.T``."""
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class _Answer:
    """An output of a base model that has nothing but hidden states."""

    def __init__(self, hidden_states: Tensor) -> None:
        self.last_hidden_state = hidden_states

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - an int or a slice
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


class _StandIn(nn.Module):
    """Takes the base model's place, answers with given hidden states, keeps what it was asked."""

    def __init__(self, base: nn.Module, hidden_states: Tensor) -> None:
        super().__init__()
        self._base = (base,)
        self._hidden_states = hidden_states
        self.asked: list[Any] = []

    def forward(self, *args: Any, **kwargs: Any) -> _Answer:  # noqa: ANN401
        self.asked.append(args[0] if args else kwargs.get("input_ids"))
        return _Answer(self._hidden_states)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name == "decoder":  # some models call a part of their base model
            return self
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_base"][0], name)


def plain_head(module: Any) -> Head | str:  # noqa: ANN401 - a transformers model
    """Return how ``module`` makes logits of its base model's hidden states; a text if otherwise.

    Its forward runs with a stand-in for the base model and a head of a few rows, so the answer
    holds for any architecture, and for a model without values.
    """
    head = module.get_output_embeddings()
    part = "decoder" if module.config.is_encoder_decoder else module.base_model_prefix
    if head is None or not isinstance(getattr(module, part, None), nn.Module):
        return "it has no head apart from its base model"
    if getattr(head, "bias", None) is not None:
        return "its head has a bias"
    size = head.weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_ROWS, size, generator=generator) / size**0.5
    hidden_states = torch.randn(1, 64, size, generator=generator)
    hidden_states *= torch.logspace(-2, 4, 64)[:, None]
    product = hidden_states @ weight.T
    try:
        logits = _logits(module, part, hidden_states, weight)
    except _FAILURES as error:
        return f"its head cannot be run by itself ({type(error).__name__})"
    if logits is None or logits.shape != product.shape:
        return "its head takes more than the hidden states"
    found = _fitted(product, logits.float())
    if not torch.allclose(found.apply(product), logits.float(), rtol=1e-4, atol=1e-6):
        return "its head is more than a product, a factor and a softcap"
    return found


def _fitted(product: Tensor, logits: Tensor) -> Head:
    """Return the factor from small products, and the cap from the largest."""
    small, made = product[0, 0].double(), logits[0, 0].double()
    rough = float((made * small).sum() / (small * small).sum())
    largest = float(logits.abs().max())
    capped = largest < 0.5 * abs(rough) * float(product.abs().max())
    softcap = round(largest, 4) if capped else None
    if softcap is not None:
        made = softcap * torch.atanh(made / softcap)  # even small ones are bent a little
    scale = float((made * small).sum() / (small * small).sum())
    exact = round(scale, 6)
    return Head(scale=exact if abs(exact - scale) < 1e-6 * abs(scale) else scale, softcap=softcap)


@torch.no_grad()
def _logits(
    module: Any,  # noqa: ANN401
    part: str,
    hidden_states: Tensor,
    weight: Tensor,
) -> Tensor | None:
    base = getattr(module, part)
    stand_in = _StandIn(base, hidden_states)
    output_layer = module.get_output_embeddings()
    small = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    small.weight = nn.Parameter(weight)
    places = [
        (owner, name)
        for owner in module.modules()
        for name, child in owner._modules.items()
        if child is output_layer
    ]
    module._modules[part] = stand_in
    for owner, name in places:
        owner._modules[name] = small
    ids = torch.zeros(1, hidden_states.shape[1], dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids}
    if module.config.is_encoder_decoder:
        inputs = {"decoder_input_ids": ids, "encoder_outputs": (hidden_states,)}
    try:
        output = module(**inputs, use_cache=False)
    finally:
        module._modules[part] = base
        for owner, name in places:
            owner._modules[name] = output_layer
    if len(stand_in.asked) != 1 or stand_in.asked[0] is not ids:
        return None
    logits: Tensor = output.logits
    return logits
