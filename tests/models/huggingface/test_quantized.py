"""Adapters on weights of 4 bits, and adapters that go on from a folder."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from families import LORA, make, rows, saved
from hf_ranks import start, tokenizer_in

from foundry_sdk.batch import Batch
from foundry_sdk.errors import SpecError
from foundry_sdk.export.exporter import export_model, export_transformers
from foundry_sdk.losses.specs import CrossEntropySpec
from foundry_sdk.models.huggingface.causal_lm import HFCausalLM
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec
from foundry_sdk.optim.groups import param_groups
from foundry_sdk.optim.specs import AdamWSpec
from foundry_sdk.training.objective import Objective

pytest.importorskip("peft")
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
IDS = rows(2, 10)
BATCH = Batch(input_ids=IDS, labels=torch.nn.functional.pad(IDS[:, 1:], (0, 1), value=-100))


def spec(folder: Path | str, **fields: Any) -> HFCausalLMSpec:
    return HFCausalLMSpec(pretrained_model_name_or_path=str(folder), **fields)


def built(folder: Path | str, **fields: Any) -> HFCausalLM:
    model = spec(folder, **fields).build(device="cpu")
    model.init_weights(5)
    assert isinstance(model, HFCausalLM)
    return model


def stir(model: Any) -> None:
    """Give adapters values that are far from nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def rounded(family: str, **how: Any) -> Any:
    """Return a model of transformers whose linear layers went through 4 bits and back."""
    functional = pytest.importorskip("bitsandbytes").functional
    from transformers.pytorch_utils import Conv1D

    model = make(family)
    for layer in model.base_model.modules():
        if isinstance(layer, torch.nn.Linear | Conv1D):
            turned = isinstance(layer, Conv1D)
            weight = layer.weight.data.T.contiguous() if turned else layer.weight.data
            packed, state = functional.quantize_4bit(weight, blocksize=64, **how)
            back = functional.dequantize_4bit(packed, state).reshape(weight.shape)
            layer.weight.data = back.T.contiguous() if turned else back
    return model


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_and_gradients_are_those_of_the_rounded_weights(
    tmp_path: Path, family: str, double: bool
) -> None:
    from peft import LoraConfig, get_peft_model

    reference = rounded(family, quant_type="nf4", compress_statistics=double)
    config = NF4 | {"bnb_4bit_use_double_quant": double}
    model = built(saved(family, tmp_path), peft_config=LORA, quantization_config=config)
    exact = make(family)(IDS).logits
    torch.testing.assert_close(model.logits(model(BATCH)), reference(IDS).logits)
    assert float((model.logits(model(BATCH)) - exact).detach().abs().max()) > 1e-2

    theirs = get_peft_model(reference, LoraConfig(task_type="CAUSAL_LM", r=4))
    stir(model)
    stir(theirs)
    expected = theirs(input_ids=IDS, labels=IDS).loss
    expected.backward()
    loss_sum, count = Objective(model, CrossEntropySpec().build())(BATCH)
    (loss_sum / count).backward()
    assert float((loss_sum / count).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    found = dict(model.model.named_parameters())
    compared = 0
    for name, parameter in theirs.named_parameters():
        own = found[name.removeprefix("base_model.model.")]
        assert (own.grad is not None) is ("lora_" in name), name
        if own.grad is not None:
            torch.testing.assert_close(own.grad, parameter.grad, rtol=1e-4, atol=1e-6)
            compared += 1
    assert compared == len(param_groups(model.named_parameters(), AdamWSpec())[0]["params"])


def test_weights_take_half_a_byte_and_are_in_no_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = built(saved("llama", tmp_path), peft_config=LORA, quantization_config=NF4)
    plain = built(tmp_path / "llama", peft_config=LORA)
    sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    for name, parameter in plain.named_parameters():
        is_matrix = "layers" in name and "proj" in name and "lora_" not in name
        assert sizes[name] == (parameter.numel() / 2 if is_matrix else parameter.numel() * 4), name
        assert model.in_checkpoint(name) is ("lora_" in name)


def test_layers_can_be_skipped(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = NF4 | {"llm_int8_skip_modules": ["mlp"]}
    model = built(saved("llama", tmp_path), peft_config=LORA, quantization_config=config)
    dtypes = {name: p.dtype for name, p in model.model.named_parameters()}
    assert dtypes["model.layers.0.mlp.up_proj.weight"] is torch.float32
    assert dtypes["model.layers.0.self_attn.o_proj.weight"] is torch.uint8
    assert dtypes["lm_head.weight"] is torch.float32


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fields, text in (
        ({"quantization_config": NF4}, "needs peft_config"),
        ({"quantization_config": NF4, "peft_config": LORA, "pretrained": False}, "pretrained"),
        (
            {"quantization_config": NF4, "peft_config": LORA, "should_save_peft_only": False},
            "should_save_peft_only: true",
        ),
        ({"quantization_config": {"load_in_8bit": True}, "peft_config": LORA}, "load_in_8bit"),
        ({"quantization_config": {}, "peft_config": LORA}, "expected load_in_4bit: true"),
        (
            {"quantization_config": NF4 | {"bnb_4bit_quant_type": "nf5"}, "peft_config": LORA},
            "'nf4' or 'fp4', got 'nf5'",
        ),
        ({"peft_config": LORA, "pretrained_lora_id_or_path": "x"}, "leave one of the two out"),
    ):
        with pytest.raises(ValueError, match=text):
            spec("a", **fields)
    asked = spec(saved("llama", tmp_path), peft_config=LORA, quantization_config=NF4)
    with pytest.raises(SpecError, match="not sharded"):
        asked.build(device="meta")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SpecError, match=r"foundry-sdk\[qlora\]"):
        asked.build(device="cpu")


def adapters_of_peft(folder: Path, **config: Any) -> Any:
    """Save adapters as peft does; return its model."""
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(make("llama"), LoraConfig(task_type="CAUSAL_LM", r=4, **config))
    stir(theirs)
    theirs.save_pretrained(folder, save_embedding_layers=False)
    return theirs


@pytest.mark.parametrize("target", ["all-linear", ["embed_tokens", "q_proj"]])
def test_training_goes_on_from_adapters_of_peft(tmp_path: Path, target: Any) -> None:
    theirs = adapters_of_peft(
        tmp_path / "adapters", target_modules=target, lora_alpha=16, use_rslora=True
    )
    folder = saved("llama", tmp_path)
    model = built(folder, pretrained_lora_id_or_path=str(tmp_path / "adapters"))
    torch.testing.assert_close(model.logits(model(BATCH)), theirs(IDS).logits)
    trained = {name for name, p in model.model.named_parameters() if p.requires_grad}
    expected = {name for name, p in theirs.named_parameters() if p.requires_grad}
    assert {f"base_model.model.{name}" for name in trained} == expected
    assert all("lora_" in name for name in trained)
    assert model.in_checkpoint(next(iter(trained)))
    assert not model.in_checkpoint("model.model.norm.weight")


def test_adapters_that_do_not_fit_are_named(tmp_path: Path) -> None:
    adapters_of_peft(tmp_path / "adapters")
    folder = saved("llama", tmp_path)
    file = tmp_path / "adapters" / "adapter_config.json"
    values = json.loads(file.read_text("utf-8"))
    for changed, text in (
        ({"r": 8}, r"lora_A.weight: \[4, 32\] in the files, \[8, 32\] in"),
        ({"target_modules": ["q_proj"]}, "4 tensor.s. in the files have no place in the model"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"peft_type": "IA3"}, "peft_type: expected LORA"),
    ):
        file.write_text(json.dumps(values | changed), encoding="utf-8")
        with pytest.raises(SpecError, match=text):
            built(folder, pretrained_lora_id_or_path=str(tmp_path / "adapters"))
    file.unlink()
    with pytest.raises(SpecError, match=r"has no adapter_config\.json"):
        built(folder, pretrained_lora_id_or_path=str(tmp_path / "adapters"))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["all-linear", ["embed_tokens", "q_proj"]])
def test_adapters_that_were_exported_go_on(tmp_path: Path, target: Any) -> None:
    folder = saved("llama", tmp_path)
    source = built(folder, peft_config=LORA | {"target_modules": target})
    stir(source)
    expected = source.logits(source(BATCH))
    export_transformers(source, None, tmp_path / "adapters")
    model = built(folder, pretrained_lora_id_or_path=str(tmp_path / "adapters"))
    torch.testing.assert_close(model.logits(model(BATCH)), expected)
    again = export_transformers(model, None, tmp_path / "again")
    assert "LoRA" in again.architecture


@pytest.mark.slow
def test_a_run_on_four_bits_with_activation_checkpointing(tmp_path: Path) -> None:
    """Gradients pass frozen layers; adapters in a folder go on, sharded as in one process."""
    pytest.importorskip("bitsandbytes")
    folder = str(saved("llama", tmp_path))
    adapters_of_peft(tmp_path / "adapters")
    common = {"tokenizer": tokenizer_in(tmp_path / "tokenizer"), "root": str(tmp_path / "runs")}
    base = {"pretrained_model_name_or_path": folder}
    four = base | {
        "peft_config": LORA | {"target_modules": "all-linear"},
        "quantization_config": NF4,
    }
    recomputed = {"activation_checkpointing": True}
    onward = base | {"pretrained_lora_id_or_path": str(tmp_path / "adapters")}
    start(
        [
            common | {"name": "plain", "model": four},
            common | {"name": "recomputed", "model": four, "fsdp": recomputed},
            common | {"name": "one", "model": onward},
        ],
        1,
    )
    sharded = {"sharding_strategy": "FULL_SHARD"}
    start([common | {"name": "two", "model": onward, "fsdp": sharded}], 2)
    plain, again, one, two = (
        losses(tmp_path / "runs" / name) for name in ("plain", "recomputed", "one", "two")
    )
    assert plain == pytest.approx(again, rel=1e-6)
    assert plain[-1] < plain[0]
    assert one == pytest.approx(two, rel=1e-5)
    certificate = export_model(tmp_path / "runs" / "recomputed", tmp_path / "out")
    assert "LoRA" in certificate.architecture


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line["loss/train/total"] for line in lines if "loss/train/total" in line]
