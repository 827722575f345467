"""``mpt_causal_lm`` from exports as another architecture: export and way back are one mapping."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from foundry_sdk.batch import Batch
from foundry_sdk.errors import SpecError
from foundry_sdk.export.architectures import architecture_of
from foundry_sdk.export.certificate import Certificate
from foundry_sdk.export.files import digests, write_config, write_json, write_weights
from foundry_sdk.models.huggingface.weights import WeightFiles
from foundry_sdk.models.mpt.exported import CERTIFICATE, read_counterparts
from foundry_sdk.models.mpt.layouts import LAYOUTS
from foundry_sdk.models.mpt.model import MPT
from foundry_sdk.models.mpt.options import AttentionSpec, FFNSpec, InitSpec, RopeHFSpec
from foundry_sdk.models.mpt.spec import MPTSpec

IDS = torch.arange(3, 23)[None]
SIZES: dict[str, Any] = {
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 64,
    "vocab_size": 96,
    "init_config": InitSpec(name="baseline_", init_std=0.3),
}
ROPE: dict[str, Any] = {"attn_impl": "torch", "rope": True, "rope_theta": 500.0}
GROUPED = ROPE | {"attn_type": "grouped_query_attention", "kv_n_heads": 2}
GATED: dict[str, Any] = {
    "norm_type": "low_precision_rmsnorm",
    "ffn_config": FFNSpec(ffn_type="mptglu", ffn_hidden_size=40, ffn_act_fn={"name": "silu"}),
}


def spec_of(*, attention: dict[str, Any] | None = None, **options: Any) -> MPTSpec:
    config = AttentionSpec(**(attention or {"attn_impl": "torch"}))
    return MPTSpec(**SIZES | {"attn_config": config} | options)


SEPARATE = {"attn_impl": "torch", "fused_qkv": False}
SPECS = {
    "gpt2": spec_of(resid_pdrop=0.1),
    "gpt2, no bias, separate, untied": spec_of(
        attention=SEPARATE, no_bias=True, tie_word_embeddings=False, expansion_ratio=3
    ),
    "neox": spec_of(attention=ROPE),
    "neox, only attention biases, separate": spec_of(
        attention=ROPE | {"fused_qkv": False, "clip_qkv": None}, no_bias=True, attention_bias=True
    ),
    "llama": spec_of(attention=GROUPED, no_bias=True, tie_word_embeddings=False, **GATED),
    "llama, biases, head_dim, separate, scaled rope": spec_of(
        attention=GROUPED
        | {
            "fused_qkv": False,
            "rope_impl": "hf",
            "rope_hf_config": RopeHFSpec(type="linear", factor=2.0),
        },
        head_dim=10,
        **GATED,
    ),
    "llama, no attention bias": spec_of(attention=GROUPED, attention_bias=False, **GATED),
    "mpt, separate, softmax_scale": spec_of(
        attention=SEPARATE | {"alibi": True, "softmax_scale": 0.3, "clip_qkv": 0.9}, no_bias=True
    ),
}
FACTORS = {
    "gpt2": spec_of(attention={"attn_impl": "torch", "softmax_scale": 0.3}, logit_scale=0.7),
    "neox": spec_of(attention=ROPE | {"softmax_scale": 0.3}, logit_scale="inv_sqrt_d_model"),
    "llama": spec_of(attention=GROUPED | {"softmax_scale": 0.3}, logit_scale=0.7, **GATED),
    "mpt": spec_of(attention={"attn_impl": "torch", "alibi": True}, no_bias=True, logit_scale=0.7),
}


def filled(spec: MPTSpec) -> MPT:
    model = spec.build(device="cpu")
    model.init_weights(2)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            noise = torch.Generator().manual_seed(index)
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)
    return model.eval()


def exported(folder: Path, model: MPT, *, shard_bytes: int = 20_000) -> Path:
    """Write what ``foundry export`` leaves, without the comparison by another process."""
    architecture = architecture_of(model.spec)
    folder.mkdir()
    parameters, dtype = dict(model.named_parameters()), torch.float32
    tensors = write_weights(folder, architecture, parameters, dtype=dtype, shard_bytes=shard_bytes)
    tied = model.spec.tie_word_embeddings
    write_config(folder, architecture, tied=tied, dtype=dtype, tokenizer=None)
    certificate = Certificate(
        architecture=architecture.name,
        precision="fp32",
        parameters=0,
        tensors=len(tensors),
        prompts=(),
        max_abs_difference=0.0,
        logit_scale=0.0,
        tolerance=0.0,
        greedy_tokens=0,
        ties=0,
        versions={},
        sha256=digests(folder),
        mpt=attrs.asdict(model.spec),
    )
    write_json(folder / CERTIFICATE, certificate.to_dict())
    return folder


def begun(place: Path, **fields: Any) -> MPT:
    model = MPTSpec(pretrained_model_name_or_path=str(place), **fields).build(device="cpu")
    model.init_weights(7)
    return model


def logits(model: MPT) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.eval()(Batch(input_ids=IDS, labels=IDS)))


@pytest.mark.parametrize("case", SPECS)
def test_every_parameter_is_the_one_that_was_exported(case: str, tmp_path: Path) -> None:
    source = filled(SPECS[case])
    place = exported(tmp_path / "there", source)
    model = begun(place, attn_config=AttentionSpec(attn_impl="torch"))
    own, theirs = dict(model.named_parameters()), dict(source.named_parameters())
    assert own.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(own[name], value), name
    # dropout is an option of the run that follows
    assert model.spec == attrs.evolve(source.spec, resid_pdrop=0.0)
    assert torch.equal(logits(model), logits(source))
    assert str(place) in model.choices()["model"]


@pytest.mark.parametrize("case", FACTORS)
def test_factors_that_the_export_folded_in_are_taken_out(case: str, tmp_path: Path) -> None:
    source = filled(FACTORS[case])
    place = exported(tmp_path / "there", source)
    model = begun(place)
    for name, value in source.named_parameters():
        # one unit in the last place
        torch.testing.assert_close(model.get_parameter(name), value, rtol=2**-23, atol=0)
    torch.testing.assert_close(logits(model), logits(source), rtol=1e-5, atol=1e-5)
    assert model.spec.logit_scale == source.spec.logit_scale
    assert model.spec.attn_config.softmax_scale == source.spec.attn_config.softmax_scale


@pytest.mark.parametrize("case", SPECS)
def test_a_part_of_a_parameter_is_read_where_it_lies(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts are those of two ranks; they are what ``own_part`` says of their tensors."""
    from foundry_sdk.models.mpt import exported as reading

    source = filled(SPECS[case])
    files = WeightFiles(exported(tmp_path / "there", source))
    layout = LAYOUTS[architecture_of(source.spec).name](source.spec)
    whole = dict(source.named_parameters())
    halves: list[dict[str, torch.Tensor]] = []
    for rank in range(2):
        places: dict[int, tuple[slice, ...]] = {}
        parts: dict[str, torch.Tensor] = {}
        for name, value in whole.items():
            middle = value.shape[0] // 2 + 1  # unequal, and within a projection
            rows = slice(0, middle) if rank == 0 else slice(middle, value.shape[0])
            parts[name] = torch.empty_like(value[rows])
            places[id(parts[name])] = (rows, *(slice(0, size) for size in value.shape[1:]))
        monkeypatch.setattr(reading, "own_part", lambda t, places=places: places[id(t)])
        read_counterparts(files, layout, parts)
        halves.append(parts)
    for name, value in whole.items():
        assert torch.equal(torch.cat([half[name] for half in halves]), value), name


def test_a_rank_reads_no_more_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foundry_sdk.models.mpt import exported as reading

    source = filled(SPECS["llama"])
    files = WeightFiles(exported(tmp_path / "there", source))
    layout = LAYOUTS["LlamaForCausalLM"](source.spec)
    parts = {name: value[:1].clone() for name, value in source.named_parameters()}
    monkeypatch.setattr(reading, "own_part", lambda t: tuple(slice(0, size) for size in t.shape))
    read_counterparts(files, layout, parts)
    assert files.bytes_read == 4 * sum(part.numel() for part in parts.values())


def change(place: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(place / "model.safetensors")
    edit(tensors)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("case", ["gpt2", "neox", "llama"])
def test_tensors_that_do_not_fit_are_named(case: str, tmp_path: Path) -> None:
    place = exported(tmp_path / "there", filled(SPECS[case]), shard_bytes=10**9)
    names = sorted(load_file(place / "model.safetensors"))
    missing = names[0]
    wrong = next(name for name in names[1:] if name.endswith("weight"))

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["extra.weight"] = torch.zeros(2)
        del tensors[missing]
        tensors[wrong] = torch.zeros(3, 5)

    change(place, edit)
    with pytest.raises(SpecError) as raised:
        begun(place)
    text = str(raised.value)
    assert f"of the model are not in the files: {missing}" in text
    assert "in the files have no place in the model: extra.weight" in text
    assert f"{wrong}: [3, 5] in the files" in text


def test_a_bias_that_the_mpt_does_not_have_must_be_zero(tmp_path: Path) -> None:
    source = filled(SPECS["gpt2, no bias, separate, untied"])
    place = exported(tmp_path / "there", source, shard_bytes=10**9)
    name = "transformer.h.1.mlp.c_fc.bias"
    change(place, lambda tensors: tensors[name].__setitem__(3, 0.5))
    with pytest.raises(SpecError, match=rf"{name} is not 0, and the MPT .* has no such bias"):
        begun(place)


def test_what_was_multiplied_by_zero_is_lost(tmp_path: Path) -> None:
    place = exported(tmp_path / "there", filled(spec_of(logit_scale=0.0)))
    with pytest.raises(SpecError, match=r"multiplied weights by 0 \(model\.logit_scale"):
        begun(place)


def test_a_folder_that_does_not_say_its_mpt_is_for_transformers(tmp_path: Path) -> None:
    place = exported(tmp_path / "there", filled(SPECS["llama"]))
    certificate = json.loads((place / CERTIFICATE).read_text())
    write_json(place / CERTIFICATE, certificate | {"mpt": None})
    with pytest.raises(SpecError, match=r"no certificate\.json that says .* name: hf_causal_lm"):
        begun(place)
    (place / CERTIFICATE).unlink()
    with pytest.raises(SpecError, match=r"no certificate\.json that says .* name: hf_causal_lm"):
        begun(place)


def test_a_config_that_was_changed_is_not_the_exported_mpt(tmp_path: Path) -> None:
    place = exported(tmp_path / "there", filled(SPECS["neox"]))
    config = json.loads((place / "config.json").read_text())
    write_json(place / "config.json", config | {"rotary_emb_base": 10.0})
    with pytest.raises(SpecError, match=r"config\.json was changed since the export"):
        begun(place)


def test_an_mpts_own_config_may_be_changed(tmp_path: Path) -> None:
    place = exported(tmp_path / "there", filled(SPECS["mpt, separate, softmax_scale"]))
    config = json.loads((place / "config.json").read_text())
    write_json(place / "config.json", config | {"max_seq_len": 128})
    model = begun(place)
    assert model.max_sequence_length() == 128
    assert model.spec.attn_config.fused_qkv  # as transformers has it


def test_only_the_config_and_what_is_said_here(tmp_path: Path) -> None:
    source = filled(SPECS["llama"])
    place = exported(tmp_path / "there", source)
    fresh = begun(place, pretrained=False, attn_config=AttentionSpec(attn_impl="torch"))
    plain = source.spec.build(device="cpu")
    plain.init_weights(7)
    assert torch.equal(logits(fresh), logits(plain))
    with pytest.raises(SpecError, match=r"model.d_model: 64 here, 32 in"):
        begun(place, d_model=64)


@pytest.mark.slow
def test_two_sharded_ranks_begin_and_train_as_one_process(tmp_path: Path) -> None:
    """The worker trains; its losses tell what it began from."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "huggingface"))
    from hf_ranks import start, tokenizer_in

    common = {"tokenizer": tokenizer_in(tmp_path / "tokenizer"), "root": str(tmp_path / "runs")}
    runs = []
    for case in ("gpt2", "neox"):
        source = filled(attrs.evolve(SPECS[case], vocab_size=64))
        place = exported(tmp_path / case, source)
        named = {"pretrained_model_name_or_path": str(place)}
        runs.append(common | {"name": case, "model": named, "mpt": True})
    sharded = {"sharding_strategy": "FULL_SHARD"}
    start([each | {"name": each["name"] + "-1"} for each in runs], 1)
    start([each | {"name": each["name"] + "-2", "fsdp": sharded} for each in runs], 2)
    found = {}
    for name in ("gpt2-1", "gpt2-2", "neox-1", "neox-2"):
        file = tmp_path / "runs" / name / "metrics.jsonl"
        lines = map(json.loads, file.read_text("utf-8").splitlines())
        found[name] = [x["loss/train/total"] for x in lines if "loss/train/total" in x]
    for case in ("gpt2", "neox"):
        assert len(found[f"{case}-1"]) == 6
        assert found[f"{case}-2"] == pytest.approx(found[f"{case}-1"], rel=1e-5)
