"""What ``hf_causal_lm`` refuses, and what it says then."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))

from families import make, saved

from foundry_sdk.errors import SpecError
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved("llama", tmp_path)


def build(folder: Path | str, **fields: Any) -> Any:
    model = HFCausalLMSpec(pretrained_model_name_or_path=str(folder), **fields).build(device="cpu")
    model.init_weights(0)
    return model


def test_remote_code_needs_a_commit() -> None:
    for revision in (None, "main", "abc123"):
        with pytest.raises(ValueError, match="40 hexadecimal digits"):
            HFCausalLMSpec(
                pretrained_model_name_or_path="a/b", trust_remote_code=True, revision=revision
            )
    HFCausalLMSpec(
        pretrained_model_name_or_path="a/b", trust_remote_code=True, revision="0123456789" * 4
    )


def test_contradictions() -> None:
    with pytest.raises(ValueError, match="8 bits"):
        HFCausalLMSpec(pretrained_model_name_or_path="a", load_in_8bit=True)
    with pytest.raises(ValueError, match="contradicts"):
        HFCausalLMSpec(
            pretrained_model_name_or_path="a",
            use_flash_attention_2=True,
            attn_implementation="eager",
        )


def test_overrides_are_checked(folder: Path) -> None:
    model = build(folder, pretrained=False, config_overrides={"num_hidden_layers": 3})
    assert len(model.blocks()) == 3
    with pytest.raises(SpecError, match=r"config_overrides.num_hiden_layers.*'num_hidden_layers'"):
        build(folder, config_overrides={"num_hiden_layers": 3})
    with pytest.raises(SpecError, match="hidden_size: expected a value like 32"):
        build(folder, config_overrides={"hidden_size": {"a": 1}})
    rope = {"rope_parameters": {"rope_theta": 5.0}}
    scaled = {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}}
    import transformers

    new = int(transformers.__version__.split(".")[0]) >= 5
    theta = build(folder, config_overrides=rope if new else scaled)
    plain = build(folder)
    assert not torch.equal(
        theta.model.model.rotary_emb.inv_freq, plain.model.model.rotary_emb.inv_freq
    )
    if new:
        with pytest.raises(SpecError, match=r"rope_parameters.theta: not known.*'rope_theta'"):
            build(folder, config_overrides={"rope_parameters": {"theta": 5.0}})


def test_a_flash_attention_that_is_not_installed(folder: Path) -> None:
    import importlib.util

    if importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("flash-attn is installed here")
    with pytest.raises(SpecError, match="needs the package flash-attn"):
        build(folder, use_flash_attention_2=True)


def test_an_attention_that_would_leave_out_a_cap(tmp_path: Path) -> None:
    capped = saved("gemma2", tmp_path)
    assert "eager" in build(capped).choices()["model.attn_implementation"]
    with pytest.raises(SpecError, match="use eager"):
        build(capped, attn_implementation="sdpa")


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no folder"):
        build(tmp_path / "nowhere")
    with pytest.raises(SpecError, match=r"config.json"):
        build(tmp_path)


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}), encoding="utf-8")
    with pytest.raises(SpecError, match="makes no CausalLM; its model_type is 'vit'"):
        build(tmp_path, pretrained=False)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SpecError, match=r"has no weights.*pretrained: false"):
        build(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(SpecError, match=r"a pickle.*save_pretrained"):
        build(folder)


def test_weights_of_another_model(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    gone = weights.pop("model.layers.0.mlp.up_proj.weight")
    weights["model.layers.0.mlp.side_proj.weight"] = gone
    weights["model.norm.weight"] = torch.ones(33)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(SpecError) as raised:
        build(folder)
    text = str(raised.value)
    assert "1 tensor(s) of the model are not in the files: model.layers.0.mlp.up_proj" in text
    assert "1 tensor(s) in the files have no place in the model: model.layers.0.mlp.side" in text
    assert "model.norm.weight: [33] in the files, [32] in the model" in text


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    build(tmp_path)
    shards[1].unlink()
    with pytest.raises(SpecError, match=f"lacks {shards[1].name}"):
        build(tmp_path)


def test_weights_of_a_base_model_fit(tmp_path: Path) -> None:
    whole = make("gpt2")
    whole.transformer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["architectures"] = ["GPT2LMHeadModel"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ids = torch.arange(3, 12)[None]
    model = build(tmp_path).eval().model
    torch.testing.assert_close(model(ids).logits, whole.eval()(ids).logits)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", "attn_implementation"])
def test_overrides_that_would_have_no_effect(folder: Path, key: str) -> None:
    with pytest.raises(SpecError, match=f"config_overrides.{key}: without effect here"):
        build(folder, config_overrides={key: "bfloat16"})


def test_weights_of_half_precision_become_float32(tmp_path: Path) -> None:
    halves = make("llama").to(torch.bfloat16)
    halves.save_pretrained(tmp_path)
    for name, parameter in build(tmp_path).model.named_parameters():
        assert parameter.dtype is torch.float32
        assert torch.equal(parameter, halves.get_parameter(name).float())


def test_a_revision_is_one_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="has no revisions"):
        build(folder, revision="main")
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    build("somebody/llama", revision="v1.1")
    assert (asked["name"], asked["revision"]) == ("somebody/llama", "v1.1")
    assert "*.safetensors" in asked["allow_patterns"]
    build("somebody/llama", pretrained=False)
    assert asked["revision"] is None
    assert "*.safetensors" not in asked["allow_patterns"]  # the config is all that is needed


def test_code_of_a_folder_is_not_run(folder: Path) -> None:
    """Neither for an architecture that transformers knows, nor for one that it does not."""
    (folder / "modeling_own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model\n"
        f"Path({str(folder / 'it_ran')!r}).touch()\n",
        encoding="utf-8",
    )
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    config["auto_map"] = {
        "AutoConfig": "modeling_own.Config",
        "AutoModelForCausalLM": "modeling_own.Model",
    }
    file.write_text(json.dumps(config), encoding="utf-8")
    assert type(build(folder).model).__module__.startswith("transformers.models.llama")
    file.write_text(json.dumps(config | {"model_type": "own"}), encoding="utf-8")
    with pytest.raises(SpecError, match="no config of a model that transformers knows"):
        build(folder)
    assert not (folder / "it_ran").exists()
