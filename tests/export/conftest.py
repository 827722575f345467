"""Small MPTs with any options, whose every parameter matters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from foundry_sdk.models.mpt.model import MPT
from foundry_sdk.models.mpt.options import AttentionSpec
from foundry_sdk.models.mpt.spec import MPTSpec

V, LENGTH = 67, 48


@pytest.fixture
def ids() -> torch.Tensor:
    """Return sequences of full length, int64 (2, 48)."""
    return torch.randint(0, V, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small() -> Callable[..., MPTSpec]:
    """Return a function that makes a spec; ``attention`` are options of its attention."""

    def make(*, attention: dict[str, Any] | None = None, **options: Any) -> MPTSpec:
        config = AttentionSpec(**{"attn_impl": "torch"} | (attention or {}))
        sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2}
        defaults = sizes | {"max_seq_len": LENGTH, "vocab_size": V}
        return MPTSpec(**defaults | {"attn_config": config} | options)

    return make


@pytest.fixture
def filled() -> Callable[[MPTSpec], MPT]:
    """Return a function that builds a model without zero biases and weights of one."""

    def build(spec: MPTSpec) -> MPT:
        model = spec.build(device="cpu").eval()
        model.init_weights(2)
        with torch.no_grad():
            for index, parameter in enumerate(model.parameters()):
                noise = torch.Generator().manual_seed(index)
                parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)
        return model

    return build
