"""Transformers reads exported files as the trained model; wrong files do not pass."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_sdk.batch import Batch
from foundry_sdk.checkpoint.ranks import SoloRanks
from foundry_sdk.checkpoint.state import model_and_optimizer_tensors
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.errors import CheckpointError, ExportError
from foundry_sdk.export.architectures import architecture_of
from foundry_sdk.export.certificate import compare
from foundry_sdk.export.exporter import export_model, export_weights
from foundry_sdk.export.files import write_config, write_weights
from foundry_sdk.export.trained import load_trained
from foundry_sdk.models.mpt.model import MPT
from foundry_sdk.models.mpt.options import (
    AttentionTemperatureSpec,
    FFNSpec,
    RopeHFSpec,
)
from foundry_sdk.models.mpt.spec import MPTSpec

transformers = pytest.importorskip("transformers")

LLAMA = {"norm_type": "rmsnorm", "ffn_config": FFNSpec(ffn_type="mptglu")}
GROUPED = {"rope": True, "attn_type": "grouped_query_attention", "kv_n_heads": 2}
LLAMA3 = RopeHFSpec(
    type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
EQUALS: dict[str, tuple[str, dict[str, Any]]] = {
    "alibi": ("MptForCausalLM", {"attention": {"alibi": True}, "no_bias": True}),
    "alibi, 6 heads, clip, scales": (
        "MptForCausalLM",
        {
            "d_model": 48,
            "n_heads": 6,
            "attention": {"alibi": True, "clip_qkv": 0.7, "softmax_scale": 0.4, "fused_qkv": False},
            "no_bias": True,
            "logit_scale": "inv_sqrt_d_model",
            "tie_word_embeddings": False,
        },
    ),
    "learned": ("GPT2LMHeadModel", {}),
    "learned, no bias": ("GPT2LMHeadModel", {"no_bias": True, "expansion_ratio": 3}),
    "learned, untied, scales": (
        "GPT2LMHeadModel",
        {"tie_word_embeddings": False, "logit_scale": 0.3, "attention": {"softmax_scale": 0.5}},
    ),
    "learned, tanh gelu, separate": (
        "GPT2LMHeadModel",
        {
            "ffn_config": FFNSpec(ffn_act_fn={"name": "gelu", "approximate": "tanh"}),
            "attention": {"fused_qkv": False},
            "norm_eps": 1e-3,
        },
    ),
    "rope": ("GPTNeoXForCausalLM", {"attention": {"rope": True, "rope_theta": 500.0}}),
    "rope, untied, no bias, relu": (
        "GPTNeoXForCausalLM",
        {
            "attention": {"rope": True},
            "no_bias": True,
            "tie_word_embeddings": False,
            "ffn_config": FFNSpec(ffn_act_fn={"name": "relu"}),
        },
    ),
    "rope, linear": (
        "GPTNeoXForCausalLM",
        {
            "attention": {
                "rope": True,
                "rope_impl": "hf",
                "rope_hf_config": RopeHFSpec(type="linear", factor=3.0),
            }
        },
    ),
    "llama": ("LlamaForCausalLM", {"attention": GROUPED, "no_bias": True, **LLAMA}),
    "llama, biases, head_dim, llama3": (
        "LlamaForCausalLM",
        {
            "attention": GROUPED | {"rope_impl": "hf", "rope_hf_config": LLAMA3},
            "head_dim": 10,
            **LLAMA,
        },
    ),
    "llama, only attention biases": (
        "LlamaForCausalLM",
        {"attention": {"rope": True}, "no_bias": True, "attention_bias": True, **LLAMA},
    ),
}


@pytest.mark.parametrize("case", EQUALS)
def test_transformers_computes_the_same_logits(
    case: str,
    tmp_path: Path,
    small: Callable[..., MPTSpec],
    filled: Callable[[MPTSpec], MPT],
    ids: torch.Tensor,
) -> None:
    name, options = EQUALS[case]
    spec = small(**options)
    model = filled(spec)
    architecture = architecture_of(spec)
    assert architecture.name == name
    parameters = dict(model.named_parameters())
    write_weights(tmp_path, architecture, parameters, dtype=torch.float32)
    write_config(
        tmp_path,
        architecture,
        tied=spec.tie_word_embeddings,
        dtype=torch.float32,
        tokenizer=None,
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(loaded).__name__ == name
    with torch.no_grad():
        expected = model.logits(model(Batch(input_ids=ids, labels=ids)))
        logits = loaded.eval()(input_ids=ids).logits
    assert float((logits - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"final_logit_softcapping": 3.0}, "final_logit_softcapping"),
        ({"attention": {"attn_logit_softcapping": 3.0}}, "attn_logit_softcapping"),
        ({"attention": {"qk_ln": True}}, "qk_ln"),
        ({"attention": {"qk_gn": True}}, "qk_gn"),
        ({"attention": {"sliding_window_size": 4}}, "sliding_window_size"),
        (
            {"attention": {"attn_temperature_tuning": AttentionTemperatureSpec(attn_scale=1.0)}},
            "attn_temperature_tuning",
        ),
        ({"attention": {"alibi": True}}, "MptForCausalLM is the nearest.*\n.*no_bias"),
        ({"attention": {"alibi": True, "alibi_bias_max": 16}, "no_bias": True}, "alibi_bias_max"),
        (
            {"attention": {"alibi": True}, "no_bias": True, "expansion_ratio": 2},
            "hidden size of 64",
        ),
        ({"attention": {"clip_qkv": 1.0}}, "clip_qkv"),
        ({"norm_type": "rmsnorm"}, "layer norms"),
        ({"ffn_config": FFNSpec(ffn_type="mptglu")}, "no gate"),
        ({"attention": GROUPED}, "kv_n_heads 2"),
        ({"head_dim": 10}, "head_dim 10"),
        ({"learned_pos_emb": False}, "always has learned positions"),
        ({"ffn_config": FFNSpec(ffn_act_fn={"name": "celu"})}, "ffn_act_fn celu"),
    ],
)
def test_what_has_no_equal_is_refused_with_the_reason(
    options: dict[str, Any], reason: str, small: Callable[..., MPTSpec]
) -> None:
    with pytest.raises(ExportError, match=reason):
        architecture_of(small(**options))


def test_a_refusal_names_every_reason(small: Callable[..., MPTSpec]) -> None:
    spec = small(attention={"qk_ln": True, "sliding_window_size": 3}, final_logit_softcapping=9.0)
    with pytest.raises(ExportError) as caught:
        architecture_of(spec)
    for name in ("qk_ln", "sliding_window_size", "final_logit_softcapping"):
        assert name in str(caught.value)


def test_an_export_is_certified_in_shards_and_sixteen_bits(
    tmp_path: Path, small: Callable[..., MPTSpec], filled: Callable[[MPTSpec], MPT]
) -> None:
    model = filled(small(logit_scale=0.5))
    before = {name: p.clone() for name, p in model.named_parameters()}
    out = tmp_path / "new" / "export"
    certificate = export_weights(model, None, out, precision="bf16", shard_bytes=20_000)
    assert json.loads((out / "certificate.json").read_text()) == json.loads(
        json.dumps(certificate.to_dict())
    )
    assert certificate.max_abs_difference <= certificate.tolerance * certificate.logit_scale
    assert certificate.greedy_tokens + 16 * certificate.ties >= 16
    assert certificate.parameters == model.spec.parameters()
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(shard.stat().st_size < 20_000 + 4_000 for shard in shards)
    assert set(certificate.sha256) == {p.name for p in out.iterdir()} - {"certificate.json"}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert [p.name for p in out.parent.iterdir()] == ["export"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    begun = MPTSpec(pretrained_model_name_or_path=str(out)).build(device="cpu")
    begun.init_weights(0)
    assert begun.spec.logit_scale == 0.5
    for name, value in begun.named_parameters():
        assert torch.equal(value, before[name].bfloat16().float()), name


def exported(model: MPT, tmp_path: Path) -> dict[str, list[int]]:
    architecture = architecture_of(model.spec)
    parameters = dict(model.named_parameters())
    tensors = write_weights(tmp_path, architecture, parameters, dtype=torch.float32)
    write_config(tmp_path, architecture, tied=True, dtype=torch.float32, tokenizer=None)
    return tensors


@pytest.mark.slow
def test_another_value_an_extra_tensor_and_a_missing_one_do_not_pass(
    tmp_path: Path, small: Callable[..., MPTSpec], filled: Callable[[MPTSpec], MPT]
) -> None:
    from safetensors.torch import load_file, save_file

    model = filled(small())
    tensors = exported(model, tmp_path)
    whole = load_file(tmp_path / "model.safetensors")

    def check(changed: dict[str, torch.Tensor], message: str) -> None:
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ExportError, match=message):
            compare(model, tmp_path, tensors=tensors, tokenizer=None, tolerance=1e-4)

    name = "transformer.h.1.attn.c_attn.weight"
    other = whole[name].clone()
    other[3, 5] += 1.0
    check({**whole, name: other}, "differ by up to")
    check({**whole, "transformer.h.9.extra": torch.zeros(2)}, "h.9.extra: .* in the files, None")
    check({k: v for k, v in whole.items() if k != name}, "c_attn.weight: None in the files")


def test_a_folder_that_holds_something_is_left_alone(
    tmp_path: Path, small: Callable[..., MPTSpec], filled: Callable[[MPTSpec], MPT]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="already holds something"):
        export_weights(filled(small()), None, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_is_left_of_an_export_that_fails(
    tmp_path: Path, small: Callable[..., MPTSpec], filled: Callable[[MPTSpec], MPT]
) -> None:
    model = filled(small())
    with torch.no_grad():
        model.transformer.norm_f.weight[0] = torch.nan
    with pytest.raises(ExportError, match=r"transformer.norm_f.weight holds NaN"):
        export_weights(model, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_folder(
    tmp_path: Path, tokenizer: Path, small: Callable[..., MPTSpec], filled: Callable[[MPTSpec], MPT]
) -> tuple[Path, MPT]:
    """Return what a run leaves behind, spec.yaml and one checkpoint, and its model."""
    model = filled(small(vocab_size=50368, d_model=16))
    run = tmp_path / "run"
    run.mkdir()
    values = {"model": model.config(), "tokenizer": {"name": str(tokenizer), "kwargs": {}}}
    (run / "spec.yaml").write_text(json.dumps(values))  # JSON is YAML
    tensors, _ = model_and_optimizer_tensors(model)
    store = CheckpointStore(run / "checkpoints", SoloRanks())
    store.save(3, tensors, {"model": model.config()}, {})
    store.close()
    return run, model


@pytest.fixture
def tokenizer() -> Path:
    data = os.environ.get("FOUNDRY_TEST_DATA")
    if data is None:
        pytest.skip("FOUNDRY_TEST_DATA does not name the folder with gpt-neox-20b/")
    return Path(data) / "gpt-neox-20b"


def test_a_runs_newest_checkpoint_is_exported_with_its_tokenizer(
    tmp_path: Path, run_folder: tuple[Path, MPT]
) -> None:
    run, model = run_folder
    certificate = export_model(run, tmp_path / "out")
    assert certificate.architecture == "GPT2LMHeadModel"
    assert len(certificate.prompts) == 4
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tuple(loaded("The capital of France is")["input_ids"]) == certificate.prompts[0]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] == loaded.eos_token_id == 0
    again = load_trained(run / "checkpoints" / "step-000003").model
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_checkpoint_without_its_run_still_knows_its_model(
    tmp_path: Path, run_folder: tuple[Path, MPT]
) -> None:
    run, model = run_folder
    (run / "checkpoints" / "step-000003").rename(tmp_path / "step-000003")
    trained = load_trained(tmp_path / "step-000003")
    assert trained.tokenizer is None
    assert trained.step == 3
    assert isinstance(trained.model, MPT)
    assert trained.model.spec == model.spec


def test_a_folder_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_trained(tmp_path / "nowhere")
