"""Fused kernels on a GPU against explicit matrices in float32: values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from foundry_sdk.batch import Batch
from foundry_sdk.models.mpt.options import AttentionSpec
from foundry_sdk.models.mpt.spec import MPTSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTH = 256


@pytest.fixture(autouse=True)
def forget_compilations() -> None:
    torch._dynamo.reset()


def build(attn_impl: str, **attention: Any) -> Any:
    spec = MPTSpec(
        d_model=256,
        n_heads=4,
        n_layers=2,
        max_seq_len=LENGTH,
        vocab_size=512,
        attn_config=AttentionSpec(attn_impl=attn_impl, **attention),
    )
    model = spec.build(device="cuda")
    model.init_weights(3)
    return model


def batch(*, documents: bool) -> Batch:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 512, (3, LENGTH), generator=generator)
    numbers = torch.tensor([0] * 100 + [1] * 3 + [2] * (LENGTH - 103))
    sequence_ids = torch.stack([numbers, numbers.flip(0), torch.zeros_like(numbers)])
    made = Batch(input_ids=ids, labels=ids, sequence_ids=sequence_ids if documents else None)
    return made.to(torch.device("cuda"))


def run(model: Any, data: Batch, *, half: bool) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        logits = model.logits(model(data))
    (logits.float().tanh() * torch.linspace(-1, 1, 512, device="cuda")).sum().backward()
    return logits.detach().float(), {name: p.grad for name, p in model.named_parameters()}


def near(ours: Tensor, exact: Tensor, share: float) -> None:
    assert float((ours - exact).norm()) < share * float(exact.norm())


GROUPED = {"attn_type": "grouped_query_attention", "kv_n_heads": 2}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("impl", "option"),
    [
        ("flash", {}),
        ("flash", {"rope": True, **GROUPED}),
        ("flash", {"attn_uses_sequence_id": True}),
        ("flash", {"attn_uses_sequence_id": True, **GROUPED}),
        ("flex", {}),
        ("flex", {"alibi": True}),
        ("flex", {"alibi": True, "attn_logit_softcapping": 5.0, "sliding_window_size": 40}),
        ("flex", {"attn_uses_sequence_id": True, "alibi": True, **GROUPED}),
    ],
    ids=str,
)
def test_each_kernel_is_near_exact_attention(
    impl: str, option: dict[str, Any], compiled: bool
) -> None:
    data = batch(documents=option.get("attn_uses_sequence_id", False))
    exact_logits, exact_gradients = run(build("torch", **option), data, half=False)
    model = build(impl, **option)
    if compiled:
        for block in model.blocks():
            block.compile(fullgraph=True)
    logits, gradients = run(model, data, half=True)
    near(logits, exact_logits, 0.02)
    for name, gradient in gradients.items():
        near(gradient, exact_gradients[name], 0.05)


def test_flash_in_float32_keeps_documents_apart_too() -> None:
    data = batch(documents=True)
    exact, _ = run(build("torch", attn_uses_sequence_id=True), data, half=False)
    logits, _ = run(build("flash", attn_uses_sequence_id=True), data, half=False)
    near(logits, exact, 1e-4)


def test_other_documents_need_no_new_compilation() -> None:
    model = build("flex", alibi=True, attn_uses_sequence_id=True)
    for block in model.blocks():
        block.compile(fullgraph=True)
    run(model, batch(documents=True), half=True)
    torch._dynamo.config.error_on_recompile = True
    try:
        data = batch(documents=True)
        assert data.sequence_ids is not None
        other = Batch(
            input_ids=data.input_ids, labels=data.labels, sequence_ids=data.sequence_ids.flip(1)
        )
        run(model, other, half=True)
    finally:
        torch._dynamo.config.error_on_recompile = False


def test_initial_values_are_those_of_the_cpu() -> None:
    on_gpu = build("flash")
    on_cpu = on_gpu.spec.build(device="cpu")
    on_cpu.init_weights(3)
    for (name, one), other in zip(on_gpu.named_parameters(), on_cpu.parameters(), strict=True):
        assert torch.equal(one.cpu(), other), name
