"""A transformers model without values: parameters on the meta device, each under one name."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own short name

from foundry_sdk.models.huggingface.adapters import add_adapters, is_adapted
from foundry_sdk.models.huggingface.attention import choose_attention
from foundry_sdk.models.huggingface.head import Head, plain_head
from foundry_sdk.models.huggingface.quantized import quantize_layers
from foundry_sdk.models.huggingface.source import Source
from foundry_sdk.models.huggingface.spec import Attention

Around = Callable[[], AbstractContextManager[None]]
"""Makes the context in which a model's constructor runs."""
Registered = Callable[[nn.Parameter, nn.Parameter], None]


@attrs.frozen(kw_only=True, eq=False)
class Skeleton:
    """A model without values.

    Attributes:
        module: the transformers model; parameters on the meta device, buffers on the CPU. A tensor
            with several names is a parameter under its first one only.
        tied: further names of parameters, and the names that they stand for.
        buffers: values of all buffers by name, as the constructor made them.
        attention: which one was chosen.
        reason: why, where the user did not say which; else None.
        head: how logits are made of hidden states, or why that cannot be said.
    """

    module: Any
    tied: dict[str, str]
    buffers: dict[str, Tensor]
    attention: Attention
    reason: str | None
    head: Head | str

    def active_parameters(self) -> int:
        """Return how many parameters a token passes: of the experts only those it is sent to."""
        config = self.module.config.get_text_config()
        total: int = sum(p.numel() for p in self.module.parameters())
        names = ("num_local_experts", "num_experts", "n_routed_experts")
        experts = next((getattr(config, n) for n in names if getattr(config, n, None)), None)
        chosen = getattr(config, "num_experts_per_tok", None)
        if not experts or not chosen:
            return total
        routed: int = sum(
            p.numel() for name, p in self.module.named_parameters() if ".experts." in name
        )
        return total - routed + routed * int(chosen) // int(experts)


class TiedLinear(nn.Module):
    """A linear layer that computes with another layer's weight.

    The other layer is no submodule of this one, so the weight has one name.
    """

    def __init__(self, owner: nn.Module, bias: nn.Parameter | None) -> None:
        super().__init__()
        self._owner = (owner,)
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """The weight (outputs, inputs) as it is now: whole inside a sharded forward."""
        weight = self._owner[0].weight
        assert isinstance(weight, Tensor)  # noqa: S101 - for the type checker
        return weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return (..., outputs)."""
        return F.linear(hidden_states, self.weight, self.bias)


def make_skeleton(
    source: Source,
    auto_class: str,
    attention: Attention | None,
    *,
    adapter: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
    around: Around | None = None,
) -> Skeleton:
    """Build the model that a config describes.

    Args:
        source: of the config.
        auto_class: of transformers, such as ``AutoModelForCausalLM``.
        attention: None = the fastest that is installed and fits.
        adapter: a ``peft_config``; None = no adapters.
        quantization: a ``quantization_config``; None = no layer is quantized.
        around: makes a context in which the constructor runs; ``meta_parameters`` by default.

    Raises:
        SpecError: the config fits no such model, or the attention does not fit it.
    """
    import transformers

    config = source.config()
    auto = getattr(transformers, auto_class)
    chosen, reason = choose_attention(auto, config, attention)
    with ExitStack() as stack:
        stack.enter_context((around or meta_parameters)())
        stack.enter_context(_quiet())
        module: Any = auto.from_config(
            config,
            attn_implementation=chosen,
            dtype=torch.float32,
            trust_remote_code=source.spec.trust_remote_code,
        )
    tied = _untie(module)
    head = plain_head(module)
    if quantization is not None:
        quantize_layers(module, quantization)
    if adapter is not None:
        with (around or meta_parameters)():
            add_adapters(module, adapter)
        if is_adapted(module.get_output_embeddings()):
            head = "an adapter is on it"
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    return Skeleton(
        module=module,
        tied=tied,
        buffers=buffers,
        attention=chosen,
        reason=reason,
        head=head,
    )


@contextmanager
def meta_parameters(registered: Registered | None = None) -> Iterator[None]:
    """Move each parameter to the meta device as it is registered; buffers stay as they are.

    Unlike in ``torch.device("meta")`` the values of buffers (rotary frequencies …) are there.

    Args:
        registered: called with the parameter on the meta device and the one as it was made.
    """
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        original(module, name, parameter)
        if parameter is None or parameter.device.type == "meta":
            return
        moved = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        module._parameters[name] = moved
        if registered is not None:
            registered(moved, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from announcing what it does with an empty model."""
    from transformers.utils.logging import get_verbosity, set_verbosity

    before = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(before)


def _untie(module: nn.Module) -> dict[str, str]:
    """Leave each tensor under its first name; return the other names and what they stand for.

    Moving or sharding a module makes a new tensor for each name, so two names would part.
    """
    first: dict[int, tuple[str, nn.Module]] = {}
    tied: dict[str, str] = {}
    again: list[tuple[str, nn.Module, str, nn.Module]] = []
    for path, owner in list(module.named_modules(remove_duplicate=False)):
        for name, parameter in owner._parameters.items():
            if parameter is None:
                continue
            full = f"{path}.{name}" if path else name
            if id(parameter) not in first:
                first[id(parameter)] = (full, owner)
                continue
            kept, kept_owner = first[id(parameter)]
            tied[full] = kept
            if kept_owner is not owner:
                again.append((path, owner, name, kept_owner))
    for path, owner, name, kept_owner in again:
        parent_path, _, attribute = path.rpartition(".")
        parent = module.get_submodule(parent_path)
        if isinstance(owner, nn.Embedding) and isinstance(kept_owner, nn.Embedding):
            setattr(parent, attribute, kept_owner)
        elif isinstance(owner, nn.Linear) and name == "weight":
            setattr(parent, attribute, TiedLinear(kept_owner, owner.bias))
        else:
            raise NotImplementedError(f"{path}.{name} is tied in a way that is not known here")
    return tied
