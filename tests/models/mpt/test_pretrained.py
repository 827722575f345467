"""``mpt_causal_lm`` from a run's checkpoint, an export, or files of the hub's layout."""

import json
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from foundry_sdk.batch import Batch
from foundry_sdk.checkpoint.ranks import SoloRanks
from foundry_sdk.checkpoint.state import model_and_optimizer_tensors
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.errors import CheckpointError, SpecError
from foundry_sdk.export.architectures import custom_architecture
from foundry_sdk.export.files import write_config, write_weights
from foundry_sdk.export.trained import load_trained
from foundry_sdk.models.mpt.model import MPT
from foundry_sdk.models.mpt.options import (
    AttentionSpec,
    AttentionTemperatureSpec,
    FFNSpec,
    InitSpec,
    RopeHFSpec,
)
from foundry_sdk.models.mpt.spec import MPTSpec

IDS = torch.arange(3, 23)[None]
SIZES: dict[str, Any] = {
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 64,
    "vocab_size": 96,
}
ROTARY = AttentionSpec(
    attn_impl="torch",
    attn_type="grouped_query_attention",
    kv_n_heads=2,
    rope=True,
    rope_theta=500.0,
    rope_impl="hf",
    rope_hf_config=RopeHFSpec(type="linear", factor=2.0),
    attn_temperature_tuning=AttentionTemperatureSpec(attn_scale=0.1, floor_scale=8),
    attn_pdrop=0.3,
)
SPECS = {
    "learned": MPTSpec(**SIZES, resid_pdrop=0.2, logit_scale="inv_sqrt_d_model"),
    "rotary": MPTSpec(
        **SIZES,
        attn_config=ROTARY,
        norm_type="rmsnorm",
        tie_word_embeddings=False,
        ffn_config=FFNSpec(ffn_type="mptglu", ffn_hidden_size=40, ffn_act_fn={"name": "silu"}),
        init_config=InitSpec(emb_init_uniform_lim=(-0.5, 0.5)),
        final_logit_softcapping=3.0,
    ),
}


def filled(spec: MPTSpec) -> MPT:
    model = spec.build(device="cpu")
    model.init_weights(2)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            noise = torch.Generator().manual_seed(index)
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)
    return model.eval()


def saved_run(folder: Path, model: MPT, step: int = 3) -> Path:
    """Write what a run leaves of a model: a step folder among its checkpoints."""
    tensors, _ = model_and_optimizer_tensors(model)
    store = CheckpointStore(folder / "checkpoints", SoloRanks())
    state = json.loads(json.dumps({"model": model.config()}))
    store.save(step, tensors, state, {})
    store.close()
    return folder


def exported(folder: Path, model: MPT) -> Path:
    """Write what ``foundry export --custom-code`` leaves."""
    architecture = custom_architecture(model.spec)
    parameters = dict(model.named_parameters())
    folder.mkdir()
    write_weights(folder, architecture, parameters, dtype=torch.float32)
    write_config(folder, architecture, tied=True, dtype=torch.float32, tokenizer=None)
    return folder


def logits(model: MPT) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.eval()(Batch(input_ids=IDS, labels=IDS)))


def begun(place: Path, **fields: Any) -> MPT:
    model = MPTSpec(pretrained_model_name_or_path=str(place), **fields).build(device="cpu")
    model.init_weights(7)
    return model


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("save", [saved_run, exported])
def test_logits_are_those_of_the_source(tmp_path: Path, kind: str, save: Any) -> None:
    source = filled(SPECS[kind])
    place = save(tmp_path / "there", source)
    model = begun(place)
    for name, value in source.named_parameters():
        assert torch.equal(model.get_parameter(name), value), name
    torch.testing.assert_close(logits(model), logits(source))
    # dropout is an option of the run that follows, and everything else is the source's
    assert (model.spec.resid_pdrop, model.spec.attn_config.attn_pdrop) == (0.0, 0.0)
    without = attrs.evolve(source.spec.attn_config, attn_pdrop=0.0, attn_impl="flash")
    expected = attrs.evolve(source.spec, resid_pdrop=0.0, attn_config=without)
    chosen = attrs.evolve(model.spec.attn_config, attn_impl="flash")
    assert attrs.evolve(model.spec, attn_config=chosen) == expected
    spec = MPTSpec(pretrained_model_name_or_path=str(place))
    assert spec.parameters() == sum(p.numel() for p in source.parameters())
    assert spec.flops_per_token(64) == source.spec.flops_per_token(64)
    assert str(place) in model.choices()["model"]
    assert "n_heads 4" in model.choices()["model"]


def test_files_of_the_hub_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.MptConfig(**SIZES)
    theirs = transformers.MptForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(IDS).logits
    torch.testing.assert_close(logits(begun(tmp_path)), expected, rtol=1e-4, atol=1e-5)


def test_a_step_or_the_newest_of_a_run(tmp_path: Path) -> None:
    source = filled(SPECS["learned"])
    saved_run(tmp_path, source, step=3)
    before = logits(source)
    with torch.no_grad():
        source.transformer.wte.weight.mul_(2)
    saved_run(tmp_path, source, step=5)
    assert torch.equal(logits(begun(tmp_path / "checkpoints" / "step-000003")), before)
    assert torch.equal(logits(begun(tmp_path)), logits(source))
    assert torch.equal(logits(begun(tmp_path / "checkpoints")), logits(source))


def test_what_is_said_here_must_agree(tmp_path: Path) -> None:
    place = saved_run(tmp_path, filled(SPECS["rotary"]))
    assert begun(place, n_layers=2, attn_config=AttentionSpec(rope=True)).spec.n_layers == 2
    with pytest.raises(SpecError) as raised:
        begun(place, d_model=64, attn_config=AttentionSpec(rope=True, clip_qkv=6))
    text = str(raised.value)
    assert "model.d_model: 64 here, 32 in" in text
    assert "model.attn_config.clip_qkv: 6 here, None in" in text
    assert "n_layers" not in text


def test_training_options_are_said_here(tmp_path: Path) -> None:
    learned = saved_run(tmp_path / "a", filled(SPECS["learned"]))
    attention = AttentionSpec(attn_impl="torch", attn_uses_sequence_id=True, attn_pdrop=0.1)
    spec = begun(learned, attn_config=attention, emb_pdrop=0.5).spec
    assert spec.attn_config == attention
    assert spec.emb_pdrop == 0.5
    with pytest.raises(SpecError, match=r"model.max_seq_len: 128 here, 64 in"):
        begun(learned, max_seq_len=128)  # it has a row for each position
    rotary = saved_run(tmp_path / "b", filled(SPECS["rotary"]))
    assert begun(rotary, max_seq_len=128).max_sequence_length() == 128


def test_a_run_needs_what_it_began_from_no_longer(tmp_path: Path) -> None:
    source = filled(SPECS["rotary"])
    run = saved_run(tmp_path / "run", source)
    spec = '{"model": {"name": "mpt_causal_lm", "pretrained_model_name_or_path": "/gone"}}'
    (run / "spec.yaml").write_text(spec, encoding="utf-8")
    model = load_trained(run).model
    assert isinstance(model, MPT)
    assert model.spec == source.spec
    assert torch.equal(logits(model), logits(source))


def test_only_the_config(tmp_path: Path) -> None:
    source = filled(SPECS["learned"])
    place = saved_run(tmp_path, source)
    fresh = begun(place, pretrained=False, init_config=InitSpec(name="baseline_", init_std=0.5))
    plain = attrs.evolve(
        source.spec, resid_pdrop=0.0, init_config=InitSpec(name="baseline_", init_std=0.5)
    ).build(device="cpu")
    plain.init_weights(7)
    assert torch.equal(logits(fresh), logits(plain))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    source = filled(SPECS["learned"])
    files = exported(tmp_path / "files", source) / "model.safetensors"
    tensors = load_file(files)
    tensors["transformer.norm_f.weight"] = torch.ones(33)
    del tensors["transformer.wpe.weight"]
    save_file(tensors, files)
    with pytest.raises(SpecError) as raised:
        begun(tmp_path / "files")
    assert "transformer.wpe.weight" in str(raised.value)
    assert "transformer.norm_f.weight: [33] in the files, [32] in the model" in str(raised.value)

    other = attrs.evolve(SPECS["learned"], n_layers=1)
    tensors, _ = model_and_optimizer_tensors(filled(other))
    store = CheckpointStore(tmp_path / "run", SoloRanks())
    store.save(1, tensors, json.loads(json.dumps({"model": source.config()})), {})
    with pytest.raises(CheckpointError, match=r"model\.transformer\.blocks\.1\."):
        begun(tmp_path / "run")


def test_a_damaged_checkpoint_is_not_read(tmp_path: Path) -> None:
    place = saved_run(tmp_path, filled(SPECS["learned"]))
    file = next((place / "checkpoints" / "step-000003").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(SpecError, match="SHA-256"):
        begun(place)


def test_what_is_no_mpt(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"neither a config\.json nor a whole checkpoint"):
        begun(tmp_path)
    with pytest.raises(SpecError, match="there is no folder"):
        begun(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    with pytest.raises(SpecError, match=r"model_type is 'llama'.*use name: hf_causal_lm"):
        begun(tmp_path)
    store = CheckpointStore(tmp_path / "other", SoloRanks())
    store.save(1, {"model.a": torch.ones(1)}, {"model": {"name": "hf_t5"}}, {})
    with pytest.raises(SpecError, match=r"no mpt_causal_lm but 'hf_t5'"):
        begun(tmp_path / "other")
    with pytest.raises(ValueError, match="only with pretrained_model_name_or_path"):
        MPTSpec(pretrained=False)


@pytest.mark.slow
def test_two_sharded_ranks_begin_and_train_as_one_process(tmp_path: Path) -> None:
    """The worker trains; its losses tell what it began from."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "huggingface"))
    from hf_ranks import start, tokenizer_in

    source = filled(attrs.evolve(SPECS["rotary"], vocab_size=64))
    places = {
        "run": saved_run(tmp_path / "run", source),
        "files": exported(tmp_path / "files", source),
    }
    common = {"tokenizer": tokenizer_in(tmp_path / "tokenizer"), "root": str(tmp_path / "runs")}
    runs = [
        common | {"name": name, "model": {"pretrained_model_name_or_path": str(place)}, "mpt": True}
        for name, place in places.items()
    ]
    sharded = {"sharding_strategy": "FULL_SHARD"}
    start([each | {"name": each["name"] + "-1"} for each in runs], 1)
    start([each | {"name": each["name"] + "-2", "fsdp": sharded} for each in runs], 2)
    found = {}
    for name in ("run-1", "files-1", "run-2", "files-2"):
        file = tmp_path / "runs" / name / "metrics.jsonl"
        lines = map(json.loads, file.read_text("utf-8").splitlines())
        found[name] = [x["loss/train/total"] for x in lines if "loss/train/total" in x]
    assert len(found["run-1"]) == 6
    for losses in found.values():
        assert losses == pytest.approx(found["run-1"], rel=1e-5)
