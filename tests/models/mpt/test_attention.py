"""Each attn_impl against explicit matrices, and those against arithmetic written out by hand."""

import itertools
import math
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from foundry_sdk.batch import Batch
from foundry_sdk.errors import SpecError
from foundry_sdk.models.mpt.attention import document_boundaries, make_block_mask
from foundry_sdk.models.mpt.kernels import AttentionOptions, explicit_attention
from foundry_sdk.models.mpt.options import AttentionSpec, AttentionTemperatureSpec, RopeHFSpec
from foundry_sdk.models.mpt.positions import alibi_slopes, rope_frequencies
from foundry_sdk.models.mpt.spec import MPTSpec

LENGTH = 19
VOCABULARY = 31


def small(attn_impl: str, **attention: Any) -> MPTSpec:
    return MPTSpec(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=LENGTH,
        vocab_size=VOCABULARY,
        attn_config=AttentionSpec(attn_impl=attn_impl, **attention),
    )


def random_batch(*, documents: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, VOCABULARY, (3, LENGTH), generator=generator)
    lengths = torch.tensor([0] * 7 + [1] * 4 + [2] * (LENGTH - 11))
    sequence_ids = torch.stack([lengths, lengths.flip(0), torch.zeros(LENGTH, dtype=torch.long)])
    return Batch(input_ids=ids, labels=ids, sequence_ids=sequence_ids if documents else None)


def logits_and_gradients(spec: MPTSpec, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    model = spec.build(device="cpu")
    model.init_weights(3)
    model.double()
    logits = model.logits(model(batch))
    (logits.tanh() * torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype)).sum().backward()
    return logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_flash_equals_torch_with_gradients_over_heads_documents_and_positions() -> None:
    heads = [
        {},
        {"attn_type": "multiquery_attention"},
        {"attn_type": "grouped_query_attention", "kv_n_heads": 2},
    ]
    options = [{}, {"rope": True}, {"qk_ln": True}, {"clip_qkv": 0.3, "fused_qkv": False}]
    for grouping, option, documents in itertools.product(heads, options, [False, True]):
        batch = random_batch(documents=documents)
        chosen = grouping | option | {"attn_uses_sequence_id": documents}
        logits, gradients = logits_and_gradients(small("flash", **chosen), batch)
        expected, expected_gradients = logits_and_gradients(small("torch", **chosen), batch)
        torch.testing.assert_close(logits, expected, msg=str(chosen))
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], msg=f"{name} {chosen}")


FLEX_OPTIONS = [
    {},
    {"alibi": True},
    {"sliding_window_size": 5},
    {"attn_logit_softcapping": 2.0},
    {"attn_type": "grouped_query_attention", "kv_n_heads": 2, "alibi": True},
    {"alibi": True, "attn_logit_softcapping": 1.5, "sliding_window_size": 3},
]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("option", FLEX_OPTIONS, ids=str)
def test_flex_equals_torch(option: dict[str, Any], documents: bool) -> None:
    batch = random_batch(documents=documents)
    both = []
    for impl in ("flex", "torch"):
        model = small(impl, attn_uses_sequence_id=documents, **option).build(device="cpu")
        model.init_weights(3)
        with torch.no_grad():
            both.append(model.double().logits(model(batch)))
    torch.testing.assert_close(*both)


def test_explicit_attention_equals_loops_over_every_number() -> None:
    """Two query heads on one key head; ALiBi, a window, a softcap, all by hand."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 4, 3, dtype=torch.float64, generator=generator)
    key = torch.randn(1, 1, 4, 3, dtype=torch.float64, generator=generator)
    value = torch.randn(1, 1, 4, 3, dtype=torch.float64, generator=generator)
    scale, cap, window, slopes = 0.7, 1.3, 2, (0.5, 0.25)
    expected = torch.zeros_like(query)
    for head, at in itertools.product(range(2), range(4)):
        seen = [j for j in range(4) if 0 <= at - j <= window]
        scores = []
        for j in seen:
            product = sum(float(query[0, head, at, c] * key[0, 0, j, c]) for c in range(3))
            capped = cap * math.tanh(scale * product / cap)
            scores.append(math.exp(capped - slopes[head] * (at - j)))
        for j, score in zip(seen, scores, strict=True):
            expected[0, head, at] += score / sum(scores) * value[0, 0, j]
    distance = torch.arange(4)[:, None] - torch.arange(4)
    mixed = explicit_attention(
        query,
        key,
        value,
        mask=(distance >= 0) & (distance <= window),
        bias=-torch.tensor(slopes)[:, None, None] * distance,
        options=AttentionOptions(scale=scale, softcap=cap),
    )
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("impl", ["flash", "torch", "flex"])
def test_packed_documents_are_as_if_each_were_alone(impl: str) -> None:
    """RoPE is relative, so a document's hidden states do not depend on where it lies."""
    spec = small(impl, rope=True, attn_uses_sequence_id=True)
    model = spec.build(device="cpu").eval()
    model.init_weights(1)
    model.double()
    batch = random_batch(documents=True)
    with torch.no_grad():
        packed = model(batch)
        alone = model(Batch(input_ids=batch.input_ids[:1, 7:11], labels=batch.labels[:1, 7:11]))
    torch.testing.assert_close(packed[:1, 7:11], alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("impl", ["flash", "torch", "flex"])
def test_right_padding_changes_nothing_before_it(impl: str) -> None:
    model = small(impl).build(device="cpu")
    model.init_weights(1)
    whole = random_batch()
    mask = torch.ones_like(whole.input_ids, dtype=torch.bool)
    mask[:, 12:] = False
    padded = attrs.evolve(
        whole, input_ids=whole.input_ids.masked_fill(~mask, 0), attention_mask=mask
    )
    with torch.no_grad():
        torch.testing.assert_close(model(padded)[:, :12], model(whole)[:, :12])


def test_left_padding_is_refused() -> None:
    model = small("torch").build(device="cpu")
    batch = random_batch()
    mask = torch.ones_like(batch.input_ids, dtype=torch.bool)
    mask[1, 0] = False
    with pytest.raises(ValueError, match="pad on the right"):
        model(attrs.evolve(batch, attention_mask=mask))


def test_documents_and_the_model_must_agree() -> None:
    apart = small("torch", attn_uses_sequence_id=True).build(device="cpu")
    with pytest.raises(ValueError, match="does not say which document"):
        apart(random_batch())
    together = small("torch").build(device="cpu")
    with pytest.raises(ValueError, match="attn_uses_sequence_id: true"):
        together(random_batch(documents=True))


def test_a_sequence_longer_than_the_model_is_refused() -> None:
    model = small("torch").build(device="cpu")
    ids = torch.zeros(1, LENGTH + 1, dtype=torch.long)
    with pytest.raises(ValueError, match=f"sequences of {LENGTH + 1} tokens"):
        model(Batch(input_ids=ids, labels=ids))


@pytest.mark.parametrize(
    ("impl", "option", "able"),
    [
        ("flash", {"alibi": True}, "use torch"),
        ("flash", {"sliding_window_size": 4}, "use torch"),
        ("flex", {}, "use flash or torch"),
    ],
)
def test_what_cannot_train_here_names_what_could(
    impl: str, option: dict[str, Any], able: str
) -> None:
    model = small(impl, **option).build(device="cpu")
    with pytest.raises(SpecError, match=able):
        model(random_batch())
    with pytest.raises(SpecError, match=able):
        model.spec.check_device("cpu")


def test_inference_of_a_model_trained_with_another_kernel_needs_no_kernel() -> None:
    model = small("flash", alibi=True).build(device="cpu")
    explicit = small("torch", alibi=True).build(device="cpu")
    model.init_weights(2)
    explicit.init_weights(2)
    with torch.no_grad():
        torch.testing.assert_close(model(random_batch()), explicit(random_batch()))


def test_alibi_slopes_of_the_paper() -> None:
    assert alibi_slopes(8, 8).tolist() == [2.0**-i for i in range(1, 9)]
    twelve = [2.0 ** (-i / 2) for i in range(1, 17)]
    expected = (twelve[1::2] + twelve[0::2])[:12]
    torch.testing.assert_close(alibi_slopes(12, 8), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("linear", {"rope_type": "linear", "factor": 4.0}),
        ("dynamic", {"rope_type": "dynamic", "factor": 4.0}),
        (
            "llama3",
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
)
def test_rotary_frequencies_equal_those_of_transformers(
    kind: str, parameters: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theta, longest, length = 10000.0, 128, 512
    values = {k: v for k, v in parameters.items() if k != "rope_type"}
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=longest
    )
    if hasattr(config, "rope_parameters"):
        config.rope_parameters = parameters | {"rope_theta": theta}
    else:
        config.rope_theta, config.rope_scaling = theta, parameters
    expected, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
    attention = AttentionSpec(
        rope=True, rope_impl="hf", rope_hf_config=RopeHFSpec(type=kind, **values)
    )
    ours = rope_frequencies(attention, head_dim=32, length=length, max_seq_len=longest)
    torch.testing.assert_close(ours.float(), expected, rtol=2e-6, atol=0)


def test_dynamic_rope_reads_beyond_the_trained_length() -> None:
    scaled = RopeHFSpec(type="dynamic", factor=2.0)
    spec = small("torch", rope=True, rope_impl="hf", rope_hf_config=scaled)
    assert spec.max_sequence_length() is None
    model = spec.build(device="cpu")
    model.init_weights(0)
    ids = torch.zeros(1, 2 * LENGTH, dtype=torch.long)
    assert model(Batch(input_ids=ids, labels=ids)).isfinite().all()


def test_attention_temperature_multiplies_queries_by_its_formula() -> None:
    tuning = AttentionTemperatureSpec(floor_scale=4, attn_scale=0.3)
    model = small("torch", attn_temperature_tuning=tuning).build(device="cpu")
    positions = torch.arange(LENGTH)[None]
    inputs = model._inputs.for_sequences(
        positions, None, dtype=torch.float64, attention_dtype=torch.float64
    )
    expected = [math.log(math.floor((p + 1) / 4) + 1) * 0.3 + 1 for p in range(LENGTH)]
    assert inputs.query_factor is not None
    torch.testing.assert_close(
        inputs.query_factor.flatten(), torch.tensor(expected, dtype=torch.float64)
    )


def test_document_boundaries_lie_where_numbers_change_and_where_rows_end() -> None:
    ids = torch.tensor([[0, 0, 1, 1], [1, 1, 1, -1]])
    boundaries, longest = document_boundaries(ids)
    assert boundaries.tolist() == [0, 2, 4, 7, 8]
    assert longest == 3


def test_the_block_mask_is_the_dense_mask() -> None:
    ids = random_batch(documents=True).sequence_ids
    assert ids is not None
    from torch.nn.attention.flex_attention import create_mask

    block_mask = make_block_mask(LENGTH, ids, 5, torch.device("cpu"))
    dense = create_mask(block_mask.mask_mod, 3, None, LENGTH, LENGTH, device="cpu")
    index = torch.arange(LENGTH)
    distance = index[:, None] - index
    expected = (distance >= 0) & (distance <= 5) & (ids[:, :, None] == ids[:, None, :])
    assert torch.equal(dense[:, 0], expected)


@pytest.mark.parametrize("option", [{"rope": True}, {"alibi": True}], ids=str)
def test_what_an_inference_leaves_behind_does_not_disturb_training(option: dict[str, Any]) -> None:
    model = small("torch", **option).build(device="cpu")
    model.init_weights(2)
    with torch.inference_mode():
        before = model(random_batch())
    after = model(random_batch())
    after.sum().backward()
    torch.testing.assert_close(after, before)


def test_tables_follow_the_length_with_dynamic_rope() -> None:
    """A long sequence first must not change what a short one gets."""
    scaled = RopeHFSpec(type="dynamic", factor=2.0)
    spec = small("torch", rope=True, rope_impl="hf", rope_hf_config=scaled)
    used, fresh = (spec.build(device="cpu") for _ in range(2))
    used.init_weights(0)
    fresh.init_weights(0)
    ids = torch.arange(2 * LENGTH)[None] % VOCABULARY
    used(Batch(input_ids=ids, labels=ids))
    torch.testing.assert_close(used(random_batch()), fresh(random_batch()))
