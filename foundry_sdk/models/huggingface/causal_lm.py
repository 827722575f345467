"""A decoder of the transformers library as a ``LanguageModel``."""

from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own short name

from foundry_sdk.batch import Batch
from foundry_sdk.models.huggingface.attention import why_not_isolated
from foundry_sdk.models.huggingface.head import Head, plain_head
from foundry_sdk.models.huggingface.initial import recorded_draws
from foundry_sdk.models.huggingface.skeleton import make_skeleton
from foundry_sdk.models.huggingface.source import find_source
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec
from foundry_sdk.models.huggingface.weights import WeightFiles, load_weights
from foundry_sdk.models.init import draw_parameters
from foundry_sdk.models.language_model import LanguageModel


class HFCausalLM(LanguageModel):
    """A causal language model of transformers.

    Attributes:
        model: the transformers model. A tied head has no parameter of its own.

    Args:
        spec: of the model.
        device: ``"cpu"``, ``"cuda"``, ``"meta"`` …; values are not initialised.

    Raises:
        SpecError: the config cannot be read or fits no such model.
    """

    def __init__(self, spec: HFCausalLMSpec, *, device: str) -> None:
        super().__init__()
        self.spec = spec
        skeleton = spec.skeleton()
        self.model = skeleton.module
        self.vocab_size = int(self.model.get_output_embeddings().weight.shape[0])
        self._tied = skeleton.tied
        self._buffer_values = skeleton.buffers
        self._attention = skeleton.attention
        self._why_attention = skeleton.reason
        head = plain_head(self.model)
        self._head: Head | None = head if isinstance(head, Head) else None
        self._why_no_head = head if isinstance(head, str) else None
        self._why_not_isolated = why_not_isolated(self.model)
        if torch.device(device).type != "meta":
            self.to_empty(device=device)
            self._restore_buffers()
        self.train()

    def forward(self, batch: Batch) -> Tensor:
        """Return hidden states (sequences, S, H); where the head is not plain, logits.

        Raises:
            ValueError: the rows are too long or padded on the left, or hold several documents
                that this model cannot keep apart.
        """
        longest = self.max_sequence_length()
        if longest is not None and batch.input_ids.shape[1] > longest:
            raise ValueError(
                f"sequences of {batch.input_ids.shape[1]} tokens, but the model has {longest} "
                "positions"
            )
        if batch.attention_mask is not None:
            _refuse_left_padding(batch.attention_mask)
        called = self.model if self._head is None else self.model.base_model
        if batch.sequence_ids is None:
            # Causal attention keeps real tokens from seeing what comes after them, so padding on
            # the right needs no mask; with a mask of ones kernels take their fast path.
            mask = torch.ones_like(batch.input_ids, dtype=torch.bool)
            output = called(input_ids=batch.input_ids, attention_mask=mask, use_cache=False)
        else:
            output = self._packed(called, batch.input_ids, batch.sequence_ids)
        answer: Tensor = output.logits if self._head is None else output[0]
        return answer.reshape(*batch.input_ids.shape, answer.shape[-1])

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
        config = self.model.config.get_text_config()
        names = ("wpe", "embed_positions", "position_embeddings", "position_embedding")
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2] in names and isinstance(module, nn.Embedding):
                return int(config.max_position_embeddings)
        return None

    def blocks(self) -> list[nn.Module]:
        """Return the decoder layers."""
        return repeated_blocks(self.model)

    def choices(self) -> dict[str, str]:
        """Return what was chosen where the spec leaves it open, by option."""
        found = {}
        if self._why_attention is not None:
            found["model.attn_implementation"] = self._why_attention
        if self._why_no_head is not None:
            found["model.head"] = f"logits are made by the model: {self._why_no_head}"
        return found

    def init_weights(self, seed: int) -> None:
        """Read the weights, or draw them by the model's own rules.

        Of sharded parameters each rank reads or keeps its own part only.
        """
        self._restore_buffers()
        parameters = dict(self.model.named_parameters())
        if self.spec.pretrained:
            files = WeightFiles(find_source(self.spec).folder)
            load_weights(
                self.model,
                files,
                parameters=parameters,
                tied=self._tied,
                resized=self._resized(),
            )
            return
        draws = recorded_draws(
            partial(_remade, self.spec),
            seed=seed,
        )
        drawn = [(parameters[name], name, draw) for name, draw in draws.items()]
        draw_parameters(drawn, seed=seed)

    def config(self) -> dict[str, Any]:
        """Return the spec as YAML would say it."""
        return {"name": self.spec.kind, **attrs.asdict(self.spec)}

    def _head_weight(self) -> Tensor:
        weight = self.model.get_output_embeddings().weight
        assert isinstance(weight, Tensor)  # noqa: S101 - for the type checker
        return weight

    def _resized(self) -> frozenset[str]:
        if not self.spec.resizes:
            return frozenset()
        ends = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]
        return frozenset(
            f"{path}.{name}"
            for path, module in self.model.named_modules()
            if any(module is end for end in ends)
            for name, _ in module.named_parameters(recurse=False)
        )

    def _restore_buffers(self) -> None:
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self._buffer_values[name])


def document_positions(sequence_ids: Tensor) -> Tensor:
    """Return positions int64 (B, S) that begin again with each document of a row.

    Args:
        sequence_ids: int64 (B, S); a document is a run of equal numbers.
    """
    places = torch.arange(sequence_ids.shape[1], device=sequence_ids.device)
    begins = torch.ones_like(sequence_ids, dtype=torch.bool)
    begins[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values


def repeated_blocks(module: Any) -> list[nn.Module]:  # noqa: ANN401 - a transformers model
    """Return the layers that transformers says must stay whole, else the largest list of layers."""
    names = set(getattr(module, "_no_split_modules", None) or ())
    lists: list[nn.ModuleList] = [each for each in module.modules() if type(each) is nn.ModuleList]
    blocks = [block for each in lists for block in each if type(block).__name__ in names]
    if blocks or not lists:
        return blocks
    candidates: list[list[nn.Module]] = [[*each] for each in lists]
    return max(candidates, key=_size)


def _size(blocks: list[nn.Module]) -> int:
    return sum(p.numel() for block in blocks for p in block.parameters())


def _remade(spec: HFCausalLMSpec, around: Any) -> Any:  # noqa: ANN401
    return make_skeleton(find_source(spec), "AutoModelForCausalLM", spec.attention, around=around)


def _refuse_left_padding(attention_mask: Tensor) -> None:
    """Refuse a real token after padding; on a GPU without waiting for the answer."""
    kept = (attention_mask[:, :-1] | ~attention_mask[:, 1:]).all()
    if kept.device.type == "cpu":
        if not kept:
            raise ValueError("a row is padded on the left or in the middle; pad on the right")
    elif kept.device.type != "meta":
        torch._assert_async(kept, "a row is padded on the left; pad on the right")
