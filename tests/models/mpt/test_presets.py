"""The files under examples/pretrain describe the published sizes."""

from pathlib import Path

import pytest
import torch

from foundry_sdk.models.mpt.spec import MPTSpec
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.specs import structure
from foundry_sdk.specs.document import from_values, load
from foundry_sdk.specs.run import PretrainSpec

PRETRAIN = Path(__file__).parents[3] / "examples" / "pretrain"
COUNTS = {
    "mpt-125m": 125_311_488,
    "mpt-350m": 355_985_408,
    "mpt-760m": 760_470_528,
    "mpt-1b": 1_315_950_592,
    "mpt-3b": 2_651_837_440,
    "mpt-7b": 6_658_859_008,
    "mpt-13b": 12_853_954_560,
    "mpt-30b": 29_975_214_080,
    "mpt-70b": 64_862_437_376,
}


@pytest.mark.parametrize("name", COUNTS)
def test_each_preset_builds_the_size_it_names(name: str) -> None:
    spec, notices = structure.read(PRETRAIN / f"{name}.yaml", PretrainSpec)
    assert notices == ()
    model = spec.model.build(device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]
    assert spec.model.max_sequence_length() == spec.max_seq_len == 2048


def test_the_cpu_preset_builds_and_predicts() -> None:
    spec, _ = structure.read(PRETRAIN / "mpt-small-cpu.yaml", PretrainSpec)
    assert isinstance(spec.model, MPTSpec)
    assert spec.model.ffn_size == 80
    model = spec.model.build(device="cpu")
    model.init_weights(spec.seed)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.model.parameters()
    assert torch.isfinite(model.head_weight() if model.head_weight() is not None else 0).all()


def test_every_field_survives_yaml_and_back() -> None:
    path = PRETRAIN / "mpt-125m.yaml"
    overrides = [
        "model.attn_config.rope=true",
        "model.attn_config.rope_impl=hf",
        "model.attn_config.rope_hf_config={type: linear, factor: 2}",
        "model.ffn_config={ffn_type: mptglu, ffn_act_fn: {name: gelu, approximate: tanh}}",
        "model.init_config.emb_init_uniform_lim=[-0.1, 0.2]",
        "model.init_config.init_div_is_residual=3.5",
        "model.logit_scale=inv_sqrt_d_model",
        "model.fc_type={name: torch}",
    ]
    spec, _ = structure.read(path, PretrainSpec, overrides)
    assert isinstance(spec.model, MPTSpec)
    assert spec.model.init_config.emb_init_uniform_lim == (-0.1, 0.2)
    assert spec.model.init_config.init_div_is_residual == 3.5
    assert spec.model.attn_config.rope_hf_config.factor == 2
    catalog = PluginHost.from_environment().catalog()
    again, _ = structure.run_spec(from_values(structure.unstructure(spec)), PretrainSpec, catalog)
    assert again == spec


def test_a_wrong_model_value_is_named_with_its_path() -> None:
    with pytest.raises(ValueError, match=r"model\.attn_config.*use 'flash', or 'flex' with ALiBi"):
        structure.read(
            PRETRAIN / "mpt-125m.yaml", PretrainSpec, ["model.attn_config.attn_impl=triton"]
        )


def test_variables_fill_both_loaders() -> None:
    document = load(PRETRAIN / "mpt-1b.yaml", ["variables.data_local=/data/c4"])
    loaders = [document.values[name]["dataset"] for name in ("train_loader", "eval_loader")]
    assert [loader["local"] for loader in loaders] == ["/data/c4", "/data/c4"]
    assert [loader["split"] for loader in loaders] == ["train", "val"]
