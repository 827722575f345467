"""Activations that are made again, against those that are kept."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foundry_sdk.batch import Batch
from foundry_sdk.models.mpt.spec import AttentionSpec, MPTSpec
from foundry_sdk.specs.checks import problems
from foundry_sdk.specs.run import FSDPSpec
from foundry_sdk.training.recompute import checkpoint_activations

TOKENS = torch.arange(40).reshape(2, 20)


class Counted(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.operations[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


def backward(policy: str | None, **options: Any) -> tuple[dict[str, torch.Tensor], Counter[str]]:
    """Return the gradients, and the operations of the backward pass."""
    spec = MPTSpec(
        d_model=32,
        n_heads=4,
        n_layers=3,
        max_seq_len=20,
        vocab_size=64,
        attn_config=AttentionSpec(attn_impl="torch"),
        **options,
    )
    model = spec.build(device="cpu")
    model.init_weights(3)
    if policy is not None:
        recomputed = FSDPSpec(activation_checkpointing=True, activation_checkpointing_policy=policy)
        checkpoint_activations(model, recomputed)
    torch.manual_seed(5)
    loss = model.logits(model(Batch(input_ids=TOKENS, labels=TOKENS))).float().square().mean()
    with Counted() as counted:
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}, counted.operations


@pytest.mark.parametrize("policy", ["full", "selective"])
@pytest.mark.parametrize("options", [{}, {"resid_pdrop": 0.2}])
def test_gradients_have_the_same_bits(policy: str, options: dict[str, Any]) -> None:
    kept, _ = backward(None, **options)
    recomputed, _ = backward(policy, **options)
    for name, gradient in kept.items():
        assert torch.equal(recomputed[name], gradient), name


def test_the_selective_policy_makes_no_linear_layer_again() -> None:
    """Of three blocks' four linear layers each, nobody needs the last one's output again."""
    (_, kept), (_, full), (_, selective) = (backward(p) for p in (None, "full", "selective"))
    product, norm = "aten.addmm.default", "aten.native_layer_norm.default"
    assert (kept[product], full[product], selective[product]) == (0, 9, 0)
    assert (kept[norm], full[norm], selective[norm]) == (0, 6, 6)
    scores = "aten.bmm.default"
    assert selective[scores] == full[scores] > kept[scores]


def test_blocks_that_are_not_named_are_kept() -> None:
    _, operations = backward("full", activation_checkpointing_target={"mptblock": "first-1"})
    assert operations["aten.addmm.default"] == 3


def test_a_policy_without_checkpointing_is_refused() -> None:
    spec = FSDPSpec(activation_checkpointing_policy="selective")
    [(place, text)] = problems({"fsdp_config": spec})
    assert place == ("fsdp_config", "activation_checkpointing_policy")
    assert text == "without effect: activation_checkpointing is false"
