"""What models of the transformers library have in common as ``LanguageModel``s."""

from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own short name

from foundry_sdk.models.huggingface.adapters import load_adapters
from foundry_sdk.models.huggingface.head import Head
from foundry_sdk.models.huggingface.initial import recorded_draws
from foundry_sdk.models.huggingface.quantized import empty_weights, weight_sinks
from foundry_sdk.models.huggingface.source import find_source
from foundry_sdk.models.huggingface.spec import HFModelSpec
from foundry_sdk.models.huggingface.weights import WeightFiles, load_weights
from foundry_sdk.models.init import Draw, draw_parameters
from foundry_sdk.models.language_model import LanguageModel

if TYPE_CHECKING:
    from foundry_sdk.models.huggingface.skeleton import Skeleton

_POSITIONS = ("wpe", "embed_positions", "position_embeddings", "position_embedding")
_ADAPTER = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


class HFModel(LanguageModel):
    """A model of transformers.

    Attributes:
        model: the transformers model. Tied tensors are a parameter under one name.

    Args:
        spec: of the model.
        device: ``"cpu"``, ``"cuda"``, ``"meta"`` …; values are not initialised.

    Raises:
        SpecError: the config cannot be read or fits no such model.
    """

    def __init__(self, spec: HFModelSpec, *, device: str) -> None:
        super().__init__()
        self.spec = spec
        skeleton = spec.skeleton()
        self.model = skeleton.module
        self.vocab_size = int(self.model.get_output_embeddings().weight.shape[0])
        self._tied = skeleton.tied
        self._buffer_values = skeleton.buffers
        self._attention = skeleton.attention
        self._why_attention = skeleton.reason
        head = skeleton.head
        self._head: Head | None = head if isinstance(head, Head) else None
        self._why_no_head = head if isinstance(head, str) else None
        self._look_at(skeleton)
        empty_weights(self.model)
        if torch.device(device).type != "meta":
            self.to_empty(device=device)
            self._restore_buffers()
        self.train()

    def _look_at(self, skeleton: "Skeleton") -> None:
        """Find out what needs parameters on the meta device."""

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return logits (..., V) of what ``forward`` returned."""
        if self._head is None:
            return hidden_states
        return self._head.apply(F.linear(hidden_states, self._head_weight()))

    def head_weight(self) -> Tensor | None:
        """Return the weight (V, H) of the head: the embeddings' own tensor when tied."""
        return None if self._head is None else self._head_weight()

    def head_scale(self) -> float:
        """Return the factor on the logits that the model's forward has."""
        return 1.0 if self._head is None else self._head.scale

    def head_softcap(self) -> float | None:
        """Return the softcap that the model's forward has."""
        return None if self._head is None else self._head.softcap

    def max_sequence_length(self) -> int | None:
        """Return how many learned positions there are; None with relative or rotary ones."""
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2] in _POSITIONS and isinstance(module, nn.Embedding):
                return int(self.model.config.get_text_config().max_position_embeddings)
        return None

    def blocks(self) -> list[nn.Module]:
        """Return the layers that transformers says must stay whole, or else the largest list."""
        names = set(getattr(self.model, "_no_split_modules", None) or ())
        lists: list[list[nn.Module]] = [
            [*each] for each in self.model.modules() if type(each) is nn.ModuleList
        ]
        blocks = [block for each in lists for block in each if type(block).__name__ in names]
        return blocks or max(lists, key=_size, default=[])

    def choices(self) -> dict[str, str]:
        """Return what was chosen where the spec leaves it open, by option."""
        found = {}
        if self._why_attention is not None:
            found["model.attn_implementation"] = self._why_attention
        if self._why_no_head is not None:
            found["model.head"] = f"logits are made by the model: {self._why_no_head}"
        return found

    def init_weights(self, seed: int) -> None:
        """Read the weights, or draw them by the model's own rules; adapters are drawn.

        Of sharded parameters each rank reads or keeps its own part only.
        """
        self._restore_buffers()
        adapters: dict[str, nn.Parameter] = {}
        others: dict[str, nn.Parameter] = {}
        for name, parameter in self.model.named_parameters():
            (adapters if is_adapter(name) else others)[name] = parameter
        if self.spec.pretrained:
            load_weights(
                self.model,
                WeightFiles(find_source(self.spec).folder),
                parameters={plain_name(name): parameter for name, parameter in others.items()},
                tied=self._tied,
                resized=self._resized(),
                sinks={plain_name(n): sink for n, sink in weight_sinks(self.model).items()},
            )
        drawn = {} if self.spec.pretrained else others
        if self.spec.trained_adapters is not None:
            load_adapters(self.spec.trained_adapters, adapters)
        else:
            drawn = {**drawn, **adapters}
        if drawn:
            draws = self._draws(seed)
            draw_parameters([(p, name, draws[name]) for name, p in drawn.items()], seed=seed)

    def in_checkpoint(self, name: str) -> bool:
        """Return whether a parameter may change; with adapters on read weights only they do."""
        only_adapters = self.spec.pretrained and self.spec.saves_adapters_only
        return is_adapter(name) or not only_adapters

    def config(self) -> dict[str, Any]:
        """Return the spec as YAML would say it."""
        return {"name": self.spec.kind, **attrs.asdict(self.spec)}

    def _draws(self, seed: int) -> dict[str, Draw]:
        return recorded_draws(partial(self.spec.unquantized().skeleton), seed=seed)

    def _head_weight(self) -> Tensor:
        weight = self.model.get_output_embeddings().weight
        assert isinstance(weight, Tensor)  # noqa: S101 - for the type checker
        return weight

    def _resized(self) -> frozenset[str]:
        if not self.spec.resizes:
            return frozenset()
        ends = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]
        return frozenset(
            plain_name(f"{path}.{name}")
            for path, module in self.model.named_modules()
            if any(module is end for end in ends)
            for name, _ in module.named_parameters()
        )

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self._buffer_values[name])


def is_adapter(name: str) -> bool:
    """Return whether a parameter belongs to an adapter."""
    return any(part in _ADAPTER for part in name.split("."))


def plain_name(name: str) -> str:
    """Return a parameter's name as it is without adapters around its layer."""
    return name.replace(".base_layer.", ".")


def refuse_left_padding(attention_mask: Tensor) -> None:
    """Refuse a real token after padding; on a GPU without waiting for the answer.

    Raises:
        ValueError: there is one (on a CPU).
    """
    kept = (attention_mask[:, :-1] | ~attention_mask[:, 1:]).all()
    if kept.device.type == "cpu":
        if not kept:
            raise ValueError("a row is padded on the left or in the middle; pad on the right")
    elif kept.device.type != "meta":
        torch._assert_async(kept, "a row is padded on the left; pad on the right")


def _size(blocks: list[nn.Module]) -> int:
    return sum(p.numel() for block in blocks for p in block.parameters())
