"""What specs say of memory, against what the optimizers hold after a step."""

import pytest
import torch
from torch import nn

from foundry_sdk.optim.contract import OptimizerSpec
from foundry_sdk.optim.specs import (
    AdamWSpec,
    DecoupledAdaLRLionSpec,
    DecoupledAdamWSpec,
    DecoupledClipLionSpec,
    DecoupledLionWSpec,
    NoOpSpec,
)


@pytest.mark.parametrize(
    "spec",
    [
        AdamWSpec(lr=0.1),
        AdamWSpec(lr=0.1, amsgrad=True),
        DecoupledAdamWSpec(),
        DecoupledAdamWSpec(amsgrad=True),
        DecoupledLionWSpec(),
        DecoupledAdaLRLionSpec(),
        DecoupledClipLionSpec(),
        NoOpSpec(),
    ],
    ids=lambda spec: spec.kind,
)
def test_state_floats(spec: OptimizerSpec) -> None:
    module = nn.Linear(300, 100, bias=False)
    optimizer = spec.build([{"params": list(module.parameters())}])
    module(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    held = sum(
        value.numel()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.shape == module.weight.shape
    )
    assert held == spec.state_floats() * module.weight.numel()
