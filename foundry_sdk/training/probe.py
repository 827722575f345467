"""What callbacks may read of a running model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from foundry_sdk.training.assemble import Assembly


class ModelProbe:
    """Reads norms from, and generates with, the model of a run. Every method is a collective."""

    def __init__(self, assembly: "Assembly") -> None:
        self._a = assembly

    def parameter_norms(self) -> Mapping[str, float]:
        """Return the L2 norm of each whole parameter."""
        return _norms(dict(self._named()))

    def gradient_norms(self) -> Mapping[str, float]:
        """Return the L2 norm of each whole gradient; parameters without one are left out."""
        return _norms({n: p.grad for n, p in self._named() if p.grad is not None})

    def optimizer_norms(self) -> Mapping[str, float]:
        """Return the L2 norms of optimizer state, ``KEY/PARAMETER``; exp_avg is ``moment``."""
        state = self._a.optimizer.state
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._named():
            for key, value in state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    tensors[f"{'moment' if key == 'exp_avg' else key}/{name}"] = value
        return _norms(tensors)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Continue each prompt with the model as it is now; temperature 0 is greedy."""
        from foundry_sdk.models.generation import generate

        model = self._a.core.model
        was_training = model.training
        model.eval()
        try:
            runtime = self._a.runtime
            with torch.no_grad(), self._whole(), runtime.computing(), runtime.autocast():
                return generate(
                    model,
                    self._a.tokenizer,
                    prompts,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    seed=seed,
                )
        finally:
            model.train(was_training)

    def _named(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return self._a.core.model.named_parameters()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Hold the root's parameters whole: the model is called beside the sharded objective."""
        from torch.distributed.fsdp import FSDPModule

        objective = self._a.objective
        if isinstance(objective, FSDPModule):
            objective.unshard()
        try:
            yield
        finally:
            self._a.runtime.reshard(objective)


def _norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the L2 norms with one transfer to the host."""
    from torch.distributed.tensor import DTensor

    if not tensors:
        return {}
    norms = []
    for tensor in tensors.values():
        norm = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return dict(zip(tensors, torch.stack(norms).tolist(), strict=True))
