"""MPTSpec: counts against a table and the built model, checks of its fields."""

import subprocess
import sys

import pytest

from foundry_sdk.models.mpt.options import (
    AttentionSpec,
    FFNSpec,
    InitSpec,
    RopeDailSpec,
    RopeHFSpec,
)
from foundry_sdk.models.mpt.spec import MPTSpec

SIZES = {
    "125m": (768, 12, 12, 125_311_488, 125_209_344),
    "350m": (1024, 16, 24, 355_985_408, 355_714_048),
    "760m": (1536, 12, 24, 760_470_528, 760_063_488),
    "1b": (2048, 16, 24, 1_315_950_592, 1_315_407_872),
    "3b": (2560, 20, 32, 2_651_837_440, 2_650_933_760),
    "7b": (4096, 32, 32, 6_658_859_008, 6_657_413_120),
    "13b": (5120, 40, 40, 12_853_954_560, 12_851_696_640),
    "30b": (7168, 56, 48, 29_975_214_080, 29_971_422_208),
    "70b": (8192, 64, 80, 64_862_437_376, 64_855_220_224),
}


@pytest.mark.parametrize("no_bias", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_the_published_sizes_have_their_exact_parameter_counts(size: str, no_bias: bool) -> None:
    d_model, n_heads, n_layers, *counts = SIZES[size]
    spec = MPTSpec(d_model=d_model, n_heads=n_heads, n_layers=n_layers, no_bias=no_bias)
    built = sum(parameter.numel() for parameter in spec.build(device="meta").parameters())
    assert spec.parameters() == built == counts[no_bias]


@pytest.mark.parametrize(
    "spec",
    [
        MPTSpec(d_model=64, n_heads=4, n_layers=2, attn_config=AttentionSpec(alibi=True)),
        MPTSpec(d_model=64, n_heads=4, n_layers=2, tie_word_embeddings=False),
        MPTSpec(d_model=64, n_heads=4, n_layers=2, norm_type="rmsnorm"),
        MPTSpec(d_model=64, n_heads=4, n_layers=2, no_bias=True, attention_bias=True),
        MPTSpec(d_model=64, n_heads=4, n_layers=2, attn_config=AttentionSpec(qk_ln=True)),
        MPTSpec(d_model=64, n_heads=4, n_layers=2, attn_config=AttentionSpec(qk_gn=True)),
        MPTSpec(d_model=64, n_heads=4, n_layers=2, head_dim=24),
        MPTSpec(
            d_model=64,
            n_heads=4,
            n_layers=2,
            ffn_config=FFNSpec(ffn_type="mptglu", ffn_hidden_size=100),
        ),
        MPTSpec(
            d_model=64,
            n_heads=4,
            n_layers=2,
            norm_type="low_precision_rmsnorm",
            attn_config=AttentionSpec(
                attn_type="grouped_query_attention", kv_n_heads=2, fused_qkv=False, qk_ln=True
            ),
        ),
    ],
)
def test_the_count_is_that_of_the_built_model(spec: MPTSpec) -> None:
    built = sum(parameter.numel() for parameter in spec.build(device="meta").parameters())
    assert spec.parameters() == built


def test_flops_of_the_1b_model_by_hand() -> None:
    spec = MPTSpec(d_model=2048, n_heads=16, n_layers=24)
    by_hand = 6 * 1_315_950_592 + 12 * 24 * 2048 * 2048
    assert spec.flops_per_token(2048) == by_hand


def test_parameter_names_are_those_of_mpt_checkpoints() -> None:
    spec = MPTSpec(d_model=8, n_heads=2, n_layers=1, tie_word_embeddings=False)
    block = "transformer.blocks.0"
    parts = ["norm_1", "attn.Wqkv", "attn.out_proj", "norm_2", "ffn.up_proj", "ffn.down_proj"]
    expected = {f"{block}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    expected |= {"transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"}
    expected |= {"transformer.norm_f.weight", "transformer.norm_f.bias"}
    assert {name for name, _ in spec.build(device="meta").named_parameters()} == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MPTSpec(d_model=10, n_heads=4), "not divisible by n_heads 4"),
        (lambda: MPTSpec(resid_pdrop=1.5), r"resid_pdrop must lie in \[0, 1\], got 1.5"),
        (lambda: MPTSpec(n_layers=0), "n_layers must be a number > 0"),
        (lambda: MPTSpec(embedding_fraction=0.0), "embedding_fraction must lie in"),
        (lambda: MPTSpec(logit_scale="sqrt"), "inv_sqrt_d_model"),
        (lambda: MPTSpec(fc_type="te"), "use 'torch'"),
        (lambda: MPTSpec(norm_type="batchnorm"), "norm_type must be one of layernorm"),
        (lambda: MPTSpec(d_model=10, n_heads=2, expansion_ratio=2.55), "must be whole"),
        (lambda: MPTSpec(block_overrides={"order": []}), "every block has the same layers"),
        (lambda: MPTSpec(use_pad_tok_in_ffn=False), "only True is supported here"),
        (lambda: MPTSpec(final_logit_softcapping=-1.0), "must be a number > 0"),
        (lambda: AttentionSpec(attn_impl="triton"), "use 'flash', or 'flex' with ALiBi"),
        (lambda: AttentionSpec(attn_impl="xformers"), "must be one of flash, flex, torch"),
        (lambda: AttentionSpec(qk_ln=True, qk_gn=True), "cannot both be on"),
        (lambda: AttentionSpec(alibi=True, rope=True), "cannot both be on"),
        (lambda: AttentionSpec(kv_dim=4), "only None is supported here"),
        (lambda: AttentionSpec(sliding_window_size=0), "must be -1 or >= 1"),
        (lambda: AttentionSpec(attn_type="grouped_query_attention"), "needs kv_n_heads"),
        (lambda: AttentionSpec(rope_hf_config=RopeHFSpec(type="linear")), "only with rope: true"),
        (lambda: RopeHFSpec(type="llama3", factor=8.0), "needs low_freq_factor"),
        (lambda: RopeHFSpec(factor=2.0), "needs a scaling type"),
        (lambda: RopeDailSpec(type="xpos"), "not supported here"),
        (lambda: FFNSpec(ffn_type="mb_dmoe"), "not supported here; use 'mptmlp' or 'mptglu'"),
        (lambda: FFNSpec(ffn_act_fn={"name": "softmax"}), "ffn_act_fn.name must be one of"),
        (lambda: InitSpec(name="baseline_"), "needs init_std"),
        (lambda: InitSpec(name="xavier_normal_"), "needs init_gain"),
        (lambda: MPTSpec(attn_config=AttentionSpec(kv_n_heads=4)), "grouped_query_attention"),
        (
            lambda: MPTSpec(
                attn_config=AttentionSpec(attn_type="grouped_query_attention", kv_n_heads=3)
            ),
            "not divisible by kv_n_heads 3",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_right(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_positions_other_than_learned_are_noted() -> None:
    spec = MPTSpec(attn_config=AttentionSpec(alibi=True))
    assert not spec.learned_positions
    assert spec.notes() == ("model.learned_pos_emb: off, positions come from ALiBi",)


def test_importing_the_spec_does_not_import_torch() -> None:
    code = "import sys, foundry_sdk.models.mpt.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        (None, range(10)),
        ("mptblock", range(10)),
        (["mptblock"], range(10)),
        ({"mptblock": 3}, [0, 1, 2]),
        ({"mptblock": "first-2,last-1"}, [0, 1, 9]),
        ({"mptblock": "middle-4"}, [3, 4, 5, 6]),
        ({"mptblock": "range-2-4"}, [2, 3]),
        ({"mptblock": [0, 5, "last-2"]}, [0, 5, 8, 9]),
        ({"mptblock": [0, 2, 4, 6, 8]}, [0, 2, 4, 6, 8]),
    ],
)
def test_recomputed_blocks_are_those_named(target: object, layers: list[int]) -> None:
    spec = MPTSpec(d_model=8, n_heads=2, n_layers=10, activation_checkpointing_target=target)
    model = spec.build(device="meta")
    blocks = model.blocks()
    assert [blocks.index(block) for block in model.recomputed_blocks()] == list(layers)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mptmlp", "parts of a block are not recomputed"),
        ("decoder", "unknown; use mptblock"),
        ({"mptblock": 11}, "11 blocks of a model that has 10"),
        ({"mptblock": [10]}, "there is no block 10"),
        ({"mptblock": "range-4-2"}, "not within 10"),
        ({"mptblock": "some"}, "none of first-n"),
        ({"mptblock": None}, "names no blocks"),
    ],
)
def test_blocks_that_there_are_not_are_refused(target: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MPTSpec(d_model=8, n_heads=2, n_layers=10, activation_checkpointing_target=target)
