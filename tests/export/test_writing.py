"""Whatever ``open_writer`` opens writes what transformers itself generates from the same files."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "huggingface"))

from families import CONFIGS, LORA, VOCABULARY, make

from foundry_sdk.checkpoint.ranks import SoloRanks
from foundry_sdk.checkpoint.state import model_and_optimizer_tensors
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.errors import CheckpointError, DeviceMemoryError, SpecError
from foundry_sdk.export.architectures import architecture_of, custom_architecture
from foundry_sdk.export.exporter import export_transformers
from foundry_sdk.export.files import write_config, write_weights
from foundry_sdk.export.writing import open_writer
from foundry_sdk.models.generation import encode
from foundry_sdk.models.huggingface.causal_lm import HFCausalLM
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec, HFModelSpec, HFSeq2SeqSpec
from foundry_sdk.models.mpt.options import AttentionSpec
from foundry_sdk.models.mpt.spec import MPTSpec
from foundry_sdk.models.readers import CachedReader, TransformersReader

EOS = VOCABULARY - 1
PROMPT = "w9 w8 w7 w21 w40"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a tokenizer whose text and tokens are one to one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"w{i}": i for i in range(EOS)} | {"<eos>": EOS}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def written(folder: Path | str, count: int = 9, **options: Any) -> list[str]:
    writer = open_writer(folder, device="cpu", **options)
    return "".join(writer.write(PROMPT, max_new_tokens=count)).split()


def generated(model: Any, tokenizer: Any, count: int = 9, end: Any = EOS) -> list[str]:
    """Return what transformers' own ``generate`` writes greedily, with its cache."""
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    whole = model.eval().generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=0,
    )
    begun = 1 if model.config.is_encoder_decoder else ids.shape[1]
    return list(tokenizer.decode(whole[0, begun:], skip_special_tokens=True).split())


def saved(family: str, folder: Path, tokenizer: Any) -> Any:
    model = make(family)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def as_run(spec: HFModelSpec, folder: Path, tokenizer: Any, *, seed: int = 3) -> Any:
    """Write what a run leaves behind, with values that nobody else has; return the model."""
    model = spec.build(device="cpu")
    model.init_weights(0)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if model.in_checkpoint(name):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    folder.mkdir()
    tokenizer.save_pretrained(folder / "tokenizer")
    described = {"model": model.config(), "tokenizer": {"name": str(folder / "tokenizer")}}
    (folder / "spec.yaml").write_text(json.dumps(described, default=dict))
    store = CheckpointStore(folder / "checkpoints", SoloRanks())
    tensors, _ = model_and_optimizer_tensors(model)
    store.save(1, tensors, {"model": json.loads(json.dumps(model.config(), default=dict))}, {})
    store.close()
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "bloom", "t5"])
def test_a_model_of_transformers(family: str, tmp_path: Path, tokenizer: Any) -> None:
    model = saved(family, tmp_path, tokenizer)
    expected = generated(model, tokenizer)
    assert written(tmp_path) == expected
    assert len(expected) > 2


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_run_of_such_a_model(family: str, tmp_path: Path, tokenizer: Any) -> None:
    saved(family, tmp_path / "base", tokenizer)
    kind = HFSeq2SeqSpec if family == "t5" else HFCausalLMSpec
    spec = kind(pretrained_model_name_or_path=str(tmp_path / "base"))
    model = as_run(spec, tmp_path / "run", tokenizer)
    model.model.config.use_cache = True
    expected = generated(model.model, tokenizer)
    assert written(tmp_path / "run") == expected
    assert written(tmp_path / "base") != expected


def test_adapters_alone_in_a_run_and_in_files(tmp_path: Path, tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    base = saved("llama", tmp_path / "base", tokenizer)
    spec = HFCausalLMSpec(
        pretrained_model_name_or_path=str(tmp_path / "base"),
        peft_config=LORA | {"target_modules": ["q_proj", "v_proj"]},
    )
    model = as_run(spec, tmp_path / "run", tokenizer)
    expected = generated(model.model, tokenizer)
    assert written(tmp_path / "run") == expected
    assert written(tmp_path / "base") == generated(base, tokenizer) != expected

    theirs = get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    theirs.save_pretrained(tmp_path / "adapters")  # without a tokenizer: it is the base's
    file = tmp_path / "adapters" / "adapter_config.json"
    said = json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    file.write_text(json.dumps(said))
    expected = generated(theirs, tokenizer)
    assert written(tmp_path / "adapters") == expected != written(tmp_path / "base")
    file.write_text(json.dumps(said | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(CheckpointError, match="the model of the adapters is not there"):
        written(tmp_path / "adapters")
    (tmp_path / "adapters" / "adapter_model.safetensors").unlink()
    torch.save({}, tmp_path / "adapters" / "adapter_model.bin")  # pickled: not read
    with pytest.raises(CheckpointError, match=r"there is no adapter_model\.safetensors"):
        written(tmp_path / "adapters")


def test_adapters_on_an_encoder_decoder(tmp_path: Path, tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    base = saved("t5", tmp_path / "base", tokenizer)
    plain = generated(base, tokenizer)
    theirs = get_peft_model(base, LoraConfig(target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1.0)
    theirs.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    theirs.save_pretrained(tmp_path / "adapters")
    expected = generated(theirs, tokenizer)
    assert written(tmp_path / "adapters") == expected != plain


@pytest.mark.parametrize("custom", [True, False])
def test_an_exported_mpt_is_our_own(custom: bool, tmp_path: Path, tokenizer: Any) -> None:
    spec = MPTSpec(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=24,
        vocab_size=VOCABULARY,
        no_bias=True,
        learned_pos_emb=False,
        attn_config=AttentionSpec(attn_impl="torch", alibi=True, qk_ln=custom),
    )
    model = spec.build(device="cpu")
    model.init_weights(2)
    architecture = custom_architecture(spec) if custom else architecture_of(spec)
    parameters = dict(model.named_parameters())
    write_weights(tmp_path, architecture, parameters, dtype=torch.float32)
    write_config(tmp_path, architecture, tied=True, dtype=torch.float32, tokenizer=tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=custom)
    assert isinstance(open_writer(tmp_path, device="cpu").reader, CachedReader)
    assert written(tmp_path) == generated(theirs, tokenizer)
    assert len(written(tmp_path, count=50)) == 24 - 5  # no further than the model's length


def test_each_step_of_the_cache_is_what_reading_all_of_it_says(tokenizer: Any) -> None:
    for family in ("llama", "mistral", "gpt_neox"):  # mistral: further than its window of 6
        model = make(family).eval()
        reader = TransformersReader(model)
        ids = torch.tensor([encode(tokenizer, PROMPT)])
        with torch.no_grad():
            logits = reader.start(ids, torch.tensor([ids.shape[1]]))
            for token in (3, 5, 8, 13, 21, 34):
                torch.testing.assert_close(logits, model(ids, use_cache=False).logits[:, -1])
                ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
                logits = reader.step(torch.tensor([token]), torch.tensor([ids.shape[1] - 1]))


def test_a_model_without_keys_and_values(tmp_path: Path, tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4
    )
    model = transformers.MambaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert written(tmp_path) == generated(model, tokenizer)


def test_files_name_tokens_that_end(tmp_path: Path, tokenizer: Any) -> None:
    model = saved("llama", tmp_path, tokenizer)
    words = written(tmp_path)
    third = int(words[2].removeprefix("w"))
    assert words.index(words[2]) == 2
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [EOS, third]}))
    assert written(tmp_path) == words  # an ordinary token of this tokenizer ends nothing
    special = transformers.AutoTokenizer.from_pretrained(tmp_path)
    special.add_special_tokens({"additional_special_tokens": [words[2]]})
    special.save_pretrained(tmp_path)
    assert written(tmp_path) == words[:2] == generated(model, special, end=[EOS, third])[:2]


def test_half_precision_is_that_of_transformers(tmp_path: Path, tokenizer: Any) -> None:
    saved("llama", tmp_path, tokenizer)
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert written(tmp_path, precision="bf16") == generated(half, tokenizer)
    spec = HFCausalLMSpec(pretrained_model_name_or_path=str(tmp_path))
    as_run(spec, tmp_path / "run", tokenizer)
    writer = open_writer(tmp_path / "run", device="cpu", precision="bf16")
    assert isinstance(writer.reader, TransformersReader)
    inner = writer.reader._model
    assert {p.dtype for p in inner.parameters()} == {torch.bfloat16}
    frequencies = dict(inner.named_buffers())["model.rotary_emb.inv_freq"]
    assert frequencies.dtype == torch.float32  # 8 bits would turn far positions by degrees


def test_a_model_of_the_hub_by_its_name(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "hub" / "models--some-one--a-model"
    model = saved("llama", cache / "snapshots" / ("a" * 40), tokenizer)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(  # transformers 4 has its own copy
        transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False
    )
    assert written("some-one/a-model") == generated(model, tokenizer)
    with pytest.raises(CheckpointError, match="no such file or folder, and no model of that name"):
        open_writer("some-one/another")


def test_what_cannot_be_opened_says_why(tmp_path: Path, tokenizer: Any) -> None:
    make("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="there is no tokenizer in"):
        open_writer(tmp_path / "model", device="cpu")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "gone")
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")  # pickled: not read
    with pytest.raises(CheckpointError, match="safetensors"):
        open_writer(tmp_path / "model", device="cpu")
    (tmp_path / "model" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        open_writer(tmp_path / "model", device="cpu")


def test_why_a_text_ended(tmp_path: Path, tokenizer: Any) -> None:
    saved("llama", tmp_path, tokenizer)
    writer = open_writer(tmp_path, device="cpu")
    words = written(tmp_path, count=6)

    def ended(prompt: str, **options: Any) -> tuple[str, str]:
        pieces = writer.write(prompt, **options)
        parts = []
        while True:
            try:
                parts.append(next(pieces))
            except StopIteration as done:
                return "".join(parts), done.value

    whole, why = ended(PROMPT, max_new_tokens=6)
    assert (whole.split(), why) == (words, "max_new_tokens")
    filled, why = ended("w5 " * 60, max_new_tokens=9)
    assert len(filled.split()) == CONFIGS["llama"]["max_position_embeddings"] - 60
    assert why == "length"
    # the text that stops is no part of the answer, nor are its beginnings printed early
    stop = " ".join(words[2:4])
    assert ended(PROMPT, max_new_tokens=6, stop=stop) == (whole[: whole.index(stop)], "end")


def test_a_device_that_is_not_here_or_full(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved("llama", tmp_path, tokenizer)
    for name, message in (("gpu", "expected cpu, cuda"), ("cuda:99", "'cuda:99' is not here")):
        with pytest.raises(SpecError, match=message):
            open_writer(tmp_path, device=name)
    writer = open_writer(tmp_path, device="cpu")

    def full(self: TransformersReader, input_ids: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TransformersReader, "_read", full)
    with pytest.raises(DeviceMemoryError, match="--precision bf16"):
        next(writer.write(PROMPT, max_new_tokens=1))


@pytest.mark.slow
def test_an_export_keeps_the_tokens_that_end_its_answers(tmp_path: Path, tokenizer: Any) -> None:
    saved("llama", tmp_path / "base", tokenizer)
    file = tmp_path / "base" / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [EOS, 7], "repetition_penalty": 2.0}))
    model = HFCausalLMSpec(pretrained_model_name_or_path=str(tmp_path / "base")).build(device="cpu")
    model.init_weights(0)
    assert isinstance(model, HFCausalLM)
    export_transformers(model, tokenizer, tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.generation_config.eos_token_id == [EOS, 7]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 2
