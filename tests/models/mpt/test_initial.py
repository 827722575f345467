"""Initial values: their spread per rule, and that they depend on seed and name alone."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foundry_sdk.models.init import parameter_seed, plain_name
from foundry_sdk.models.mpt.options import AttentionSpec, InitSpec
from foundry_sdk.models.mpt.spec import MPTSpec

D, LAYERS = 96, 8


def drawn(seed: int = 17, **init: Any) -> dict[str, Tensor]:
    spec = MPTSpec(
        d_model=D, n_heads=3, n_layers=LAYERS, vocab_size=2000, init_config=InitSpec(**init)
    )
    model = spec.build(device="cpu")
    model.init_weights(seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


QKV = "transformer.blocks.0.attn.Wqkv.weight"
OUT = "transformer.blocks.0.attn.out_proj.weight"
UP = "transformer.blocks.0.ffn.up_proj.weight"
DOWN = "transformer.blocks.0.ffn.down_proj.weight"
WTE = "transformer.wte.weight"
RESIDUAL = math.sqrt(2 * LAYERS)


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (
            {},
            {
                QKV: math.sqrt(2 / D),
                OUT: math.sqrt(2 / D) / RESIDUAL,
                UP: math.sqrt(2 / D),
                DOWN: math.sqrt(2 / (4 * D)) / RESIDUAL,
                WTE: math.sqrt(2 / D),
            },
        ),
        ({"init_div_is_residual": False}, {OUT: math.sqrt(2 / D)}),
        ({"init_div_is_residual": 5.0}, {OUT: math.sqrt(2 / D) / 5}),
        # each head's block of rows is drawn by itself: fan-out is head_dim, not 3 * d_model
        ({"fan_mode": "fan_out"}, {QKV: math.sqrt(2 / 32), UP: math.sqrt(2 / (4 * D))}),
        ({"name": "kaiming_uniform_"}, {QKV: math.sqrt(2 / D), OUT: math.sqrt(2 / D) / RESIDUAL}),
        ({"name": "baseline_", "init_std": 0.02}, {QKV: 0.02, OUT: 0.02 / RESIDUAL, WTE: 0.02}),
        ({"name": "small_init_"}, {UP: math.sqrt(0.4 / D), DOWN: math.sqrt(0.4 / D) / RESIDUAL}),
        ({"name": "neox_init_"}, {OUT: math.sqrt(0.4 / D) * math.sqrt(10) / LAYERS}),
        (
            {"name": "xavier_normal_", "init_gain": 1.0},
            {QKV: math.sqrt(2 / (D + 32)), UP: math.sqrt(2 / (5 * D))},
        ),
        ({"name": "xavier_uniform_", "init_gain": 2.0}, {UP: 2 * math.sqrt(2 / (5 * D))}),
        ({"name": "default_"}, {UP: 1 / math.sqrt(3 * D), OUT: 1 / math.sqrt(3 * D), WTE: 1.0}),
        ({"emb_init_std": 0.3}, {WTE: 0.3, QKV: math.sqrt(2 / D)}),
        ({"emb_init_uniform_lim": 0.5}, {WTE: 0.5 / math.sqrt(3)}),
    ],
    ids=str,
)
def test_each_scheme_has_its_spread(init: dict[str, Any], expected: dict[str, float]) -> None:
    parameters = drawn(**init)
    for name, std in expected.items():
        values = parameters[name].double()
        assert abs(float(values.mean())) < 5 * std / math.sqrt(values.numel()), name
        assert float(values.std()) == pytest.approx(std, rel=5 / math.sqrt(values.numel())), name


def test_norms_are_one_and_biases_zero() -> None:
    for name, values in drawn().items():
        if "norm" in name and name.endswith("weight"):
            assert (values == 1).all(), name
        elif name.endswith("bias"):
            assert (values == 0).all(), name


def test_uniform_limits_bound_the_embeddings() -> None:
    values = drawn(emb_init_uniform_lim=(-0.1, 0.4))[WTE]
    assert values.min() >= -0.1
    assert values.max() <= 0.4
    assert float(values.mean()) == pytest.approx(0.15, abs=0.002)


def test_values_follow_the_seed_and_no_two_layers_are_alike() -> None:
    first, again, other = drawn(), drawn(), drawn(seed=18)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[QKV], other[QKV])
    assert not torch.equal(first[QKV], first[QKV.replace(".0.", ".1.")])


def test_values_do_not_depend_on_the_meta_device_or_the_other_layers() -> None:
    spec = MPTSpec(d_model=D, n_heads=3, n_layers=2, vocab_size=2000)
    model = spec.build(device="meta")
    model.to_empty(device="cpu")
    torch.manual_seed(12345)
    model.init_weights(17)
    eight_layers = drawn()
    for name, values in model.named_parameters():
        if "out_proj" not in name and "down_proj" not in name:  # those know the depth
            assert torch.equal(values, eight_layers[name]), name


def test_wrappers_do_not_change_a_name() -> None:
    wrapped = "_orig_mod.transformer.blocks.0._checkpoint_wrapped_module.attn.Wqkv.weight"
    assert plain_name(wrapped) == QKV


def test_the_seed_of_a_parameter_is_fixed_for_all_time() -> None:
    """From ``printf '17:transformer.wte.weight' | sha256sum``, halved to fit int64."""
    assert parameter_seed(17, WTE) == int("06a3ae0cae3ce9ac", 16) >> 1


SHARDED = """
import os, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from foundry_sdk.models.mpt.spec import MPTSpec
from foundry_sdk.models.mpt.options import AttentionSpec

dist.init_process_group("gloo")
spec = MPTSpec(d_model=20, n_heads=5, n_layers=2, vocab_size=33, max_seq_len=7,
               attn_config=AttentionSpec(attn_impl="torch"))
model = spec.build(device="meta")
mesh = init_device_mesh("cpu", (2,))
for block in model.blocks():
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
model.to_empty(device="cpu")
model.init_weights(17)
whole = spec.build(device="cpu")
whole.init_weights(17)
for (name, shard), expected in zip(model.named_parameters(), whole.parameters(), strict=True):
    assert shard.to_local().numel() < expected.numel(), name
    assert torch.equal(shard.full_tensor(), expected), name
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # threads of gloo may outlive Python's own end, which then aborts
"""


def test_two_ranks_hold_the_shards_of_the_same_values(tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def test_separate_projections_are_drawn_by_the_same_rule() -> None:
    spec = MPTSpec(
        d_model=D,
        n_heads=3,
        n_layers=1,
        attn_config=AttentionSpec(fused_qkv=False),
        init_config=InitSpec(fan_mode="fan_out"),
    )
    model = spec.build(device="cpu")
    model.init_weights(17)
    std = float(model.get_parameter("transformer.blocks.0.attn.Wq.weight").detach().std())
    assert std == pytest.approx(math.sqrt(2 / 32), rel=0.05)
