"""The modelling file that goes with an export equals the trained model, whatever its options."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_sdk.batch import Batch
from foundry_sdk.export.architectures import custom_architecture
from foundry_sdk.export.exporter import export_weights
from foundry_sdk.export.files import write_config, write_weights
from foundry_sdk.models.mpt.model import MPT
from foundry_sdk.models.mpt.options import (
    AttentionTemperatureSpec,
    FFNSpec,
    RopeHFSpec,
)
from foundry_sdk.models.mpt.spec import MPTSpec

transformers = pytest.importorskip("transformers")


GROUPED = {"attn_type": "grouped_query_attention", "kv_n_heads": 2}
LLAMA3 = RopeHFSpec(
    type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
SPECS: dict[str, dict[str, Any]] = {
    "learned, qk_ln, caps": {
        "attention": {"qk_ln": True, "attn_logit_softcapping": 1.5, "clip_qkv": 0.9},
        "final_logit_softcapping": 2.0,
        "logit_scale": "inv_sqrt_d_model",
    },
    "alibi, window, multiquery": {
        "attention": {
            "alibi": True,
            "alibi_bias_max": 4,
            "sliding_window_size": 7,
            "attn_type": "multiquery_attention",
        },
        "no_bias": True,
        "ffn_config": FFNSpec(ffn_act_fn={"name": "quick_gelu"}),
    },
    "rope, groups, qk_gn, gated": {
        "attention": {"rope": True, "qk_gn": True, "fused_qkv": False, **GROUPED},
        "ffn_config": FFNSpec(ffn_type="mptglu", ffn_act_fn={"name": "elu", "alpha": 0.5}),
        "norm_type": "rmsnorm",
        "head_dim": 10,
        "tie_word_embeddings": False,
    },
    "llama3, temperature": {
        "attention": {
            "rope": True,
            "rope_impl": "hf",
            "rope_hf_config": LLAMA3,
            "attn_temperature_tuning": AttentionTemperatureSpec(floor_scale=8, attn_scale=0.5),
            "softmax_scale": 0.5,
        },
        "no_bias": True,
        "attention_bias": True,
        "logit_scale": 0.7,
    },
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep copies of modelling files out of the user's cache."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("case", SPECS)
def test_the_copied_code_computes_the_same_logits_cached_and_padded(
    case: str,
    tmp_path: Path,
    small: Callable[..., MPTSpec],
    filled: Callable[[MPTSpec], MPT],
    ids: torch.Tensor,
) -> None:
    spec = small(**SPECS[case])
    length = ids.shape[1]
    model = filled(spec)
    out = tmp_path / "".join(letter for letter in case if letter.isalnum())
    out.mkdir()
    architecture = custom_architecture(spec)
    parameters = dict(model.named_parameters())
    write_weights(out, architecture, parameters, dtype=torch.float32)
    tied = spec.tie_word_embeddings
    write_config(out, architecture, tied=tied, dtype=torch.float32, tokenizer=None)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, trust_remote_code=True
    ).eval()
    with torch.no_grad():
        expected = model.logits(model(Batch(input_ids=ids, labels=ids)))
        whole = loaded(input_ids=ids, labels=ids)
        first = loaded(input_ids=ids[:, :20], use_cache=True)
        rest = loaded(input_ids=ids[:, 20:], past_key_values=first.past_key_values)
        padding = torch.zeros(2, 3, dtype=torch.long)
        mask = torch.cat([padding, torch.ones_like(ids)], dim=1)[:, :length]
        shifted = torch.cat([padding, ids], dim=1)[:, :length]
        padded = loaded(input_ids=shifted, attention_mask=mask).logits[:, 3:]
    largest = float(expected.abs().max())
    for logits in (whole.logits, torch.cat([first.logits, rest.logits], dim=1)):
        assert float((logits - expected).abs().max()) < 1e-4 * largest
    assert float((padded - expected[:, : length - 3]).abs().max()) < 1e-4 * largest
    loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert float(whole.loss) == pytest.approx(float(loss), rel=1e-4)


def test_an_export_with_its_own_code_is_certified(
    tmp_path: Path, small: Callable[..., MPTSpec], filled: Callable[[MPTSpec], MPT]
) -> None:
    model = filled(small(**SPECS["learned, qk_ln, caps"]))
    certificate = export_weights(model, None, tmp_path / "out", custom_code=True)
    assert certificate.architecture == "FoundryMPTForCausalLM"
    assert certificate.greedy_tokens + 16 * certificate.ties >= 16
    assert "modeling_foundry_mpt.py" in certificate.sha256
    code = (tmp_path / "out" / "modeling_foundry_mpt.py").read_text()
    assert "foundry_sdk" not in code
