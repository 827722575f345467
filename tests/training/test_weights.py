"""16-bit weights with float32 masters, against a loop that keeps both by hand."""

import copy

import pytest
import torch
from torch import nn

from foundry_sdk.errors import SpecError
from foundry_sdk.specs.checks import problems
from foundry_sdk.specs.run import Float8Spec
from foundry_sdk.training.weights import ComputeWeights


class Tied(nn.Module):
    """Two layers and a head that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.layer = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.embedding(tokens) + self.layer(self.embedding(tokens)).tanh())
        logits = hidden @ self.embedding.weight.t()
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())


@pytest.fixture
def module() -> Tied:
    torch.manual_seed(0)
    return Tied()


def batches(number: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 11, (2, 5), generator=generator) for _ in range(number)]


def by_hand(module: Tied, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rounded = copy.deepcopy(module).bfloat16()
    loss = rounded(tokens)
    loss.backward()
    return loss, {name: p.grad for name, p in rounded.named_parameters()}


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("wide", [True, False])
def test_training_equals_masters_kept_by_hand(
    module: Tied, microbatches: int, *, wide: bool
) -> None:
    """Gradients of several microbatches are added up in float32; the same bits throughout."""
    expected = copy.deepcopy(module)
    weights = ComputeWeights(module, torch.bfloat16)
    weights.wide_gradients = wide
    ours = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for step in range(4):
        parts = batches(microbatches * 4)[step * microbatches : (step + 1) * microbatches]
        with weights.lent(microbatches=microbatches):
            losses = [module(part) for part in parts]
            for loss in losses:
                loss.backward()
        sums: dict[str, torch.Tensor] = {}
        for part, loss in zip(parts, losses, strict=True):
            want, gradients = by_hand(expected, part)
            assert loss.dtype is want.dtype
            assert torch.equal(loss, want)
            for name, gradient in gradients.items():
                sums[name] = sums.get(name, 0) + gradient.float()
        half = microbatches == 1 and not wide
        for name, p in module.named_parameters():
            assert p.grad is not None
            assert p.grad.dtype is (torch.bfloat16 if half else torch.float32)
            assert torch.equal(p.grad.float(), sums[name])
            p.grad = p.grad.float()
        for name, p in expected.named_parameters():
            p.grad = sums[name]
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        for p, want in zip(module.parameters(), expected.parameters(), strict=True):
            assert p.dtype is torch.float32
            assert torch.equal(p, want)


def test_outside_the_module_is_as_it_was(module: Tied) -> None:
    before = dict(module.named_parameters())
    weights = ComputeWeights(module, torch.bfloat16)
    with weights.lent():
        inside = dict(module.named_parameters())
        assert {p.dtype for p in inside.values()} == {torch.bfloat16}
        assert list(inside) == list(before)
    after = dict(module.named_parameters())
    assert all(after[name] is before[name] for name in before)


def test_a_change_from_outside_is_seen(module: Tied) -> None:
    weights = ComputeWeights(module, torch.bfloat16)
    with weights.lent():
        pass
    with torch.no_grad():
        module.layer.weight.fill_(3.0)
    with weights.lent():
        assert module.layer.weight.unique().tolist() == [3.0]


def test_nothing_is_left_of_a_pass_that_broke_off(module: Tied) -> None:
    """As after an out-of-memory error, from which the step is repeated."""
    weights = ComputeWeights(module, torch.bfloat16)
    [tokens] = batches(1)

    def out_of_memory() -> None:
        with weights.lent(microbatches=2):
            module(tokens).backward()
            raise MemoryError

    with pytest.raises(MemoryError):
        out_of_memory()
    for p in module.parameters():
        p.grad = None
    with weights.lent(microbatches=1):
        module(tokens).backward()
    _, gradients = by_hand(module, tokens)
    assert torch.equal(module.layer.weight.grad, gradients["layer.weight"].float())


def test_frozen_parameters_are_rounded_too_and_stay_frozen(module: Tied) -> None:
    module.layer.weight.requires_grad_(requires_grad=False)
    weights = ComputeWeights(module, torch.bfloat16)
    with weights.lent():
        assert module.layer.weight.dtype is torch.bfloat16
        module(batches(1)[0]).backward()
    assert module.layer.weight.grad is None


def float8_model(width: int):
    from foundry_sdk.models.mpt.spec import AttentionSpec, MPTSpec

    spec = MPTSpec(
        d_model=width,
        n_heads=2,
        n_layers=2,
        max_seq_len=16,
        vocab_size=64,
        attn_config=AttentionSpec(attn_impl="torch"),
    )
    model = spec.build(device="cpu")
    model.init_weights(0)
    return model


def test_float8_products_are_those_of_quantised_operands() -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    from foundry_sdk.training.float8 import convert_blocks

    model = float8_model(64)
    names = [name for name, _ in model.named_parameters()]
    said = convert_blocks(model, Float8Spec(minimum_size=64), torch.device("cpu"), emulate=True)
    assert said == "tensorwise, 8 of the blocks' 8 linear layers"
    assert [name for name, _ in model.named_parameters()] == names
    layer = model.blocks()[1].ffn.up_proj
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    expected = quantised(hidden) @ quantised(layer.weight).t() + layer.bias
    torch.testing.assert_close(layer(hidden), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected, nn.functional.linear(hidden, layer.weight, layer.bias))


def quantised(values: torch.Tensor) -> torch.Tensor:
    """Round to e4m3 (largest value 448) with one scale for the tensor."""
    scale = 448.0 / values.abs().max()
    return (values * scale).to(torch.float8_e4m3fn).float() / scale


def test_float8_is_refused_where_it_gains_nothing() -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    from foundry_sdk.training.float8 import convert_blocks

    with pytest.raises(SpecError, match="none of the blocks' 8 linear layers has both dimensions"):
        convert_blocks(float8_model(64), Float8Spec(), torch.device("cpu"), emulate=True)
    with pytest.raises(SpecError, match="needs a GPU"):
        convert_blocks(float8_model(64), Float8Spec(minimum_size=16), torch.device("cpu"))


class Adam:
    kind = "adamw"


class Lion:
    kind = "decoupled_lionw"
    stochastic_rounding = True


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"precision": "fp32", "weights": "bf16"}, "needs precision amp_bf16 or amp_fp8, not fp32"),
        ({"precision": "amp_bf16", "fp8_config": Float8Spec()}, "precision is amp_bf16, not"),
        ({"weights": "bf16", "optimizer": Adam()}, "cannot be used with adamw"),
        ({"weights": "auto", "optimizer": Lion()}, "without effect on float32 weights"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, object], expected: str) -> None:
    assert expected in "\n".join(text for _, text in problems(fields))
