"""MPT folders of the hub's layout against transformers' own MPT."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from foundry_sdk.batch import Batch
from foundry_sdk.errors import SpecError
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec
from foundry_sdk.models.mpt.model import MPT

# the keys that mosaicml/mpt-7b has, at a toy size
CONFIG: dict[str, Any] = {
    "architectures": ["MPTForCausalLM"],
    "attn_config": {
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_impl": "triton",
        "attn_pdrop": 0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": None,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    },
    "auto_map": {"AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"},
    "d_model": 32,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "init_config": {"name": "kaiming_normal_", "init_std": 0.02, "verbose": 0},
    "init_device": "cpu",
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 64,
    "model_type": "mpt",
    "n_heads": 4,
    "n_layers": 2,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.28.1",
    "use_cache": False,
    "verbose": 0,
    "vocab_size": 96,
}
IDS = torch.arange(3, 23)[None]


@pytest.fixture
def reference(tmp_path: Path) -> Any:
    """A model of transformers whose weights lie in ``tmp_path``, with a config of the hub."""
    torch.manual_seed(0)
    config = transformers.MptConfig(
        d_model=32, n_heads=4, n_layers=2, max_seq_len=64, vocab_size=96
    )
    model = transformers.MptForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return model.eval()


def spec(folder: Path, **fields: Any) -> HFCausalLMSpec:
    return HFCausalLMSpec(pretrained_model_name_or_path=str(folder), **fields)


def test_it_is_our_mpt_with_the_weights_of_the_files(tmp_path: Path, reference: Any) -> None:
    given = spec(tmp_path)
    model = given.build(device="cpu")
    model.init_weights(0)
    assert isinstance(model, MPT)
    assert given.parameters() == reference.num_parameters()
    assert given.flops_per_token(64) == 6 * given.parameters() + 12 * 2 * 32 * 64
    with torch.no_grad():
        logits = model.eval().logits(model(Batch(input_ids=IDS, labels=IDS)))
        torch.testing.assert_close(logits, reference(IDS).logits, rtol=1e-4, atol=1e-5)


def test_overrides_and_new_weights(tmp_path: Path, reference: Any) -> None:
    del reference
    asked = {"attn_uses_sequence_id": True, "attn_impl": "flash"}
    overrides = {"max_seq_len": 32, "attn_config": asked}
    model = spec(tmp_path, pretrained=False, config_overrides=overrides).build(device="cpu")
    model.init_weights(0)
    assert isinstance(model, MPT)
    assert model.spec.max_seq_len == 32
    assert model.spec.attn_config.attn_uses_sequence_id
    assert model.spec.attn_config.alibi
    assert model.choices()["model.attn_config.attn_impl"] != "flash"  # which has no ALiBi


def test_what_is_refused(tmp_path: Path, reference: Any) -> None:
    del reference
    with pytest.raises(SpecError, match=r"max_seq_lenn: no mpt_causal_lm has it.*'max_seq_len'"):
        spec(tmp_path, config_overrides={"max_seq_lenn": 3}).build(device="cpu")
    with pytest.raises(SpecError, match="attn_impl"):
        spec(tmp_path, attn_implementation="sdpa").build(device="cpu")
    prefix = {"attn_config": {"prefix_lm": True}}
    with pytest.raises(SpecError, match="prefix_lm: no mpt_causal_lm has it"):
        spec(tmp_path, config_overrides=prefix).build(device="cpu")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SpecError, match="has no weights"):
        spec(tmp_path).build(device="cpu").init_weights(0)
