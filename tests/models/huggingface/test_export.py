"""``foundry export`` and ``foundry generate`` on runs of transformers models."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

from families import LORA, VOCABULARY, make, saved

from foundry_sdk.batch import Batch
from foundry_sdk.cli.main import app
from foundry_sdk.errors import ExportError
from foundry_sdk.export.exporter import export_model, export_transformers
from foundry_sdk.export.trained import load_trained
from foundry_sdk.export.writing import open_writer
from foundry_sdk.models.generation import generate
from foundry_sdk.models.huggingface.causal_lm import HFCausalLM
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec

IDS = torch.arange(3, 15)[None]


def logits_of(run: Path) -> torch.Tensor:
    model = load_trained(run).model
    with torch.no_grad():
        return model.logits(model(Batch(input_ids=IDS, labels=IDS)))


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", ["tied-2", "untied-new-1"])
def test_a_run_is_exported_as_what_it_is(results: Path, tmp_path: Path, name: str) -> None:
    certificate = export_model(results / name, tmp_path / "out")
    assert certificate.greedy_tokens == 64
    assert certificate.max_abs_difference <= 1e-5
    model = loaded(tmp_path / "out")
    assert certificate.architecture == type(model).__name__
    assert certificate.parameters == model.num_parameters()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, logits_of(results / name))
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["use_cache"]


def test_half_the_bytes_in_bf16(results: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    export_model(results / "untied-1", tmp_path / "out", precision="bf16")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"


@pytest.mark.parametrize("name", ["lora-2", "lora-all-1"])
def test_adapters_are_exported_alone_or_merged(results: Path, tmp_path: Path, name: str) -> None:
    from peft import PeftModel

    run = results / name
    certificate = export_model(run, tmp_path / "alone")
    assert "LoRA" in certificate.architecture
    adapters = json.loads((tmp_path / "alone" / "adapter_config.json").read_text("utf-8"))
    base = loaded(Path(adapters["base_model_name_or_path"]))
    with torch.no_grad():
        before = base(IDS).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "alone").eval()(IDS).logits
        expected = logits_of(run)
        torch.testing.assert_close(adapted, expected)
        assert float((before - expected).abs().max()) > 1e-3
        merged = export_model(run, tmp_path / "merged", merge=True)
        assert merged.parameters > 5 * certificate.parameters
        torch.testing.assert_close(
            loaded(tmp_path / "merged")(IDS).logits, expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
def test_adapters_on_embeddings_that_grew_go_merged(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    spec = HFCausalLMSpec(
        pretrained_model_name_or_path=str(tmp_path / "llama"),
        peft_config=LORA,
        resize_embeddings=True,
    )
    model = spec.for_vocabulary(VOCABULARY + 3).build(device="cpu")
    model.init_weights(0)
    assert isinstance(model, HFCausalLM)
    with pytest.raises(ExportError, match="--merge"):
        export_transformers(model, None, tmp_path / "alone")
    certificate = export_transformers(model, None, tmp_path / "merged", merge=True)
    assert certificate.parameters == make("llama").num_parameters() + 2 * 3 * 32


def test_nothing_to_merge(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no adapters"):
        export_model(results / "tied-1", tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["t5-2", "t5-new-1"])
def test_an_encoder_decoder_is_exported(results: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForSeq2SeqLM

    certificate = export_model(results / name, tmp_path / "out")
    assert certificate.architecture == "T5ForConditionalGeneration"
    assert certificate.greedy_tokens + certificate.ties >= 16
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ours = load_trained(results / name)
    assert ours.tokenizer is not None
    text = "w5 w6 w7 w8"
    (written,) = generate(ours.model, ours.tokenizer, [text], max_new_tokens=6)
    inputs = ours.tokenizer(text, return_tensors="pt")["input_ids"]
    theirs = model.generate(input_ids=inputs, max_new_tokens=6, do_sample=False, eos_token_id=59)
    expected = ours.tokenizer.decode(theirs[0, 1:], skip_special_tokens=True)
    assert written.split() == expected.split()


@pytest.mark.parametrize("name", ["tied-2", "lora-1", "t5-1"])
def test_runs_and_exports_write_the_same_text(results: Path, tmp_path: Path, name: str) -> None:
    export_model(results / name, tmp_path / "out")
    texts = [
        "".join(open_writer(folder, device="cpu").write("w9 w8 w7", max_new_tokens=9))
        for folder in (results / name, tmp_path / "out")
    ]
    assert texts[0] == texts[1]
    assert len(texts[0].split()) >= 3


def test_the_command_merges(results: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    done = CliRunner().invoke(app, ["export", str(results / "lora-1"), out, "--merge"])
    assert done.exit_code == 0, done.output
    assert "GPT2LMHeadModel" in done.output
    done = CliRunner().invoke(app, ["generate", out, "-p", "w3 w4", "--max-new-tokens", "4"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("w3 w4")
