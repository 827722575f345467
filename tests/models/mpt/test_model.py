"""The whole model against a float64 recomputation; what it promises to losses and the loop."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from foundry_sdk.batch import Batch
from foundry_sdk.models.mpt.options import AttentionSpec, FFNSpec
from foundry_sdk.models.mpt.spec import MPTSpec

V, S, D, HEADS = 29, 11, 24, 3


def batch() -> Batch:
    ids = torch.randint(0, V, (2, S), generator=torch.Generator().manual_seed(1))
    return Batch(input_ids=ids, labels=ids)


def build(**options: Any) -> Any:
    attention = AttentionSpec(**{"attn_impl": "torch"} | options.pop("attention", {}))
    defaults = {"d_model": D, "n_heads": HEADS, "n_layers": 2, "max_seq_len": S, "vocab_size": V}
    model = MPTSpec(**defaults | {"attn_config": attention} | options).build(device="cpu")
    model.init_weights(4)
    with torch.no_grad():  # norms and biases away from one and zero
        for index, parameter in enumerate(model.parameters()):
            noise = torch.Generator().manual_seed(index)
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)
    return model.double()


def naive(model: Any, ids: Tensor, *, clip: float = math.inf, eps: float = 1e-5) -> Tensor:
    """Recompute a learned-position model with layer norms and qk_ln from its parameters."""
    p = dict(model.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    x = p["transformer.wte.weight"][ids] + p["transformer.wpe.weight"][: ids.shape[1]]
    future = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
    for index in range(2):
        block = f"transformer.blocks.{index}"
        qkv = linear(norm(x, f"{block}.norm_1"), f"{block}.attn.Wqkv").clip(-clip, clip)
        query, key, value = qkv[..., :D], qkv[..., D : 2 * D], qkv[..., 2 * D :]
        query, key = norm(query, f"{block}.attn.q_ln"), norm(key, f"{block}.attn.k_ln")
        heads = []
        size = D // HEADS
        for head in range(HEADS):
            rows = slice(head * size, (head + 1) * size)
            scores = query[..., rows] @ key[..., rows].mT / math.sqrt(size)
            weights = scores.masked_fill(future, -math.inf).softmax(-1)
            heads.append(weights @ value[..., rows])
        x = x + linear(torch.cat(heads, -1), f"{block}.attn.out_proj")
        inner = linear(norm(x, f"{block}.norm_2"), f"{block}.ffn.up_proj")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + linear(inner, f"{block}.ffn.down_proj")
    return norm(x, "transformer.norm_f")


def test_qk_ln_and_clipping_equal_a_naive_recomputation() -> None:
    model = build(attention={"qk_ln": True, "clip_qkv": 0.8})
    ids = batch().input_ids
    torch.testing.assert_close(model(batch()), naive(model, ids, clip=0.8))


def test_logits_are_scaled_and_capped() -> None:
    model = build(logit_scale="inv_sqrt_d_model", final_logit_softcapping=2.0)
    hidden_states = model(batch())
    plain = hidden_states @ model.transformer.wte.weight.T / math.sqrt(D)
    torch.testing.assert_close(model.logits(hidden_states), 2 * torch.tanh(plain / 2))
    assert model.head_weight() is model.transformer.wte.weight
    assert model.head_scale() == pytest.approx(1 / math.sqrt(D))
    assert model.head_softcap() == 2.0


def test_an_untied_head_is_its_own_tensor() -> None:
    model = build(tie_word_embeddings=False)
    assert model.head_weight() is model.lm_head.weight
    hidden_states = model(batch())
    torch.testing.assert_close(model.logits(hidden_states), model.lm_head(hidden_states))


def test_the_gated_feed_forward_is_its_formula() -> None:
    model = build(ffn_config=FFNSpec(ffn_type="mptglu", ffn_act_fn={"name": "silu"}))
    ffn = model.blocks()[0].ffn
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gate, up = (x @ part.weight.T + part.bias for part in (ffn.gate_proj, ffn.up_proj))
    expected = (gate / (1 + torch.exp(-gate)) * up) @ ffn.down_proj.weight.T + ffn.down_proj.bias
    torch.testing.assert_close(ffn(x), expected)


@pytest.mark.parametrize("norm_type", ["rmsnorm", "low_precision_rmsnorm", "triton_rmsnorm"])
def test_rms_norms_equal_torchs(norm_type: str) -> None:
    model = build(norm_type=norm_type, norm_eps=1e-3)
    norm = model.blocks()[0].norm_1
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.rms_norm(x, (D,), norm.weight, 1e-3)
    torch.testing.assert_close(norm(x), expected)


def test_no_bias_leaves_no_bias_but_that_of_attention() -> None:
    names = {name for name, _ in build(no_bias=True).named_parameters()}
    assert not any(name.endswith("bias") for name in names)
    kept = {name for name, _ in build(no_bias=True, attention_bias=True).named_parameters()}
    assert kept - names == {f"transformer.blocks.{i}.attn.Wqkv.bias" for i in range(2)}


def test_embedding_fraction_scales_the_embeddings_gradient_and_nothing_else() -> None:
    gradients = []
    for fraction in (1.0, 0.25):
        model = build(embedding_fraction=fraction, tie_word_embeddings=False)
        model.logits(model(batch())).logsumexp(-1).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    whole, part = gradients
    for name in whole:
        factor = 0.25 if name.startswith("transformer.w") else 1.0
        torch.testing.assert_close(part[name], whole[name] * factor, msg=name)


def test_dropout_acts_in_training_only() -> None:
    model = build(resid_pdrop=0.5, emb_pdrop=0.5, attention={"attn_pdrop": 0.5})
    assert not torch.equal(model(batch()), model(batch()))
    model.eval()
    still = build()
    torch.testing.assert_close(model(batch()), still(batch()))


@pytest.mark.parametrize("norm_type", ["low_precision_layernorm", "low_precision_rmsnorm"])
def test_under_autocast_low_precision_norms_return_sixteen_bits(norm_type: str) -> None:
    model = build(norm_type=norm_type).float()
    with torch.autocast("cpu", torch.bfloat16):
        hidden_states = model(batch())
        logits = model.logits(hidden_states)
    assert hidden_states.dtype == logits.dtype == torch.bfloat16
    exact = model.logits(model(batch())).detach()
    assert float((logits.detach() - exact).abs().max()) < 0.05 * float(exact.abs().max())


@pytest.mark.parametrize("impl", ["flash", "torch"])
def test_parameters_may_be_bfloat16(impl: str) -> None:
    options = {"attn_impl": impl, "rope": True, "qk_gn": True}
    exact = build(attention=options).float()
    rounded = build(attention=options).to(torch.bfloat16)
    expected, close = exact(batch()).detach(), rounded(batch()).detach()
    assert close.dtype == torch.bfloat16
    assert float((close - expected).abs().max()) < 0.1 * float(expected.abs().max())


@pytest.mark.parametrize("attention", [{"attn_impl": "flash", "rope": True}, {"alibi": True}])
def test_a_block_compiles_into_one_graph(attention: dict[str, Any]) -> None:
    model = build(attention=attention).float()
    expected = model(batch())
    for block in model.blocks():
        block.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(model(batch()), expected)


def test_the_config_rebuilds_the_model() -> None:
    model = build(attention={"qk_gn": True})
    config = model.config()
    assert config["name"] == "mpt_causal_lm"
    assert config["attn_config"]["qk_gn"] is True
    assert config["d_model"] == D
