"""Every built-in component keeps the promises that the kit checks."""

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from foundry_sdk.component import ComponentSpec
from foundry_sdk.data.contract import PreprocessorSpec
from foundry_sdk.data.finetuning.spec import FinetuningDatasetSpec, FinetuningDataSpec
from foundry_sdk.data.streams import StreamSpec
from foundry_sdk.data.text import TextDatasetSpec, TextDataSpec
from foundry_sdk.losses.specs import CrossEntropySpec, FusedCrossEntropySpec
from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec
from foundry_sdk.models.mpt.options import AttentionSpec, FFNSpec
from foundry_sdk.models.mpt.spec import MPTSpec
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.testing import (
    check_component,
    check_declaration,
    check_fields,
    tiny_context,
    tiny_mpt_spec,
    tiny_tokenizer,
    write_tiny_mds,
)
from foundry_sdk.testing.tiny import TINY_VOCABULARY

CATALOG = PluginHost.load([]).catalog()
BUILT_IN = [entry.component for entry in CATALOG.entries.values()]
NEEDED = {
    "early_stopper": {
        "patience": "5ba",
        "dataloader_label": "eval",
        "monitor": "metrics/eval/LanguageCrossEntropy",
    },
    "generate_callback": {"prompts": ("a", "b"), "interval": "2ba", "max_new_tokens": 3},
    "scheduled_gc": {"batch_interval": 2},
    "run_timeout": {"timeout": 1000},
    "constant_with_warmup": {"t_warmup": "10ba"},
    "linear_decay_with_warmup": {"t_warmup": "10ba"},
    "cosine_with_warmup": {"t_warmup": "0.1dur"},
    "inv_sqrt_with_warmup": {"t_warmup": "10ba", "t_scale": "10ba", "t_cooldown": "20ba"},
    "wsd": {"t_warmup": "10ba", "t_decay": "20ba"},
    "mlflow": {"experiment_name": "a"},
}
SERVICES = {"comet", "cometml", "comet_ml", "mlflow", "tensorboard", "wandb"}
"""Loggers that write to a service or a run's folder; their own tests stand in for those."""
HERE = [
    cls
    for cls in BUILT_IN
    if not issubclass(cls, ModelSpec | PreprocessorSpec) and cls.family != "data"
]


def spec_of(cls: type[ComponentSpec]) -> ComponentSpec:
    given = NEEDED.get(cls.kind, {})
    names = {field.name for field in attrs.fields(cls) if field.init}
    return cls(**{key: value for key, value in given.items() if key in names})


@pytest.mark.parametrize("cls", BUILT_IN, ids=lambda cls: f"{cls.family}-{cls.kind}")
def test_every_built_in_is_declared_as_it_should_be(cls: type[ComponentSpec]) -> None:
    check_declaration(cls)


@pytest.mark.parametrize("cls", HERE, ids=lambda cls: f"{cls.family}-{cls.kind}")
def test_a_built_in_conforms(cls: type[ComponentSpec]) -> None:
    spec = spec_of(cls)
    if cls.kind in SERVICES:
        check_fields(spec)
    else:
        check_component(spec)


def test_the_fused_loss_is_another_way_to_compute_cross_entropy() -> None:
    for z_loss in (0.0, 1e-2):
        fused = FusedCrossEntropySpec(z_loss=z_loss, max_logits_bytes=64)
        check_component(fused, equals=CrossEntropySpec(z_loss=z_loss))


MODELS = {
    "tiny": tiny_mpt_spec(),
    "alibi": attrs.evolve(
        tiny_mpt_spec(), attn_config=AttentionSpec(attn_impl="torch", alibi=True)
    ),
    "grouped-rope-glu": MPTSpec(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=8,
        vocab_size=60,
        tie_word_embeddings=False,
        no_bias=True,
        norm_type="rmsnorm",
        logit_scale="inv_sqrt_d_model",
        final_logit_softcapping=5.0,
        ffn_config=FFNSpec(ffn_type="mptglu"),
        attn_config=AttentionSpec(
            attn_impl="torch",
            attn_type="grouped_query_attention",
            kv_n_heads=2,
            rope=True,
            qk_ln=True,
        ),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_mpt_conforms(name: str) -> None:
    check_component(MODELS[name])


def test_the_pretraining_loader_conforms(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    data = write_tiny_mds(tmp_path / "mds")
    dataset = TextDatasetSpec(streams={"all": StreamSpec(local=str(data))}, shuffle=True)
    spec = TextDataSpec(dataset=dataset, num_workers=0, pin_memory=False)
    check_component(spec, context=tiny_context(tokenizer))


def test_tiny_text_comes_back(tmp_path: Path) -> None:
    context = tiny_context(tiny_tokenizer(tmp_path))
    text = "naïve ☃ \t\n end"
    ids = context.tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert context.tokenizer.decode(ids) == text
    assert context.tokenizer.eos_token_id == 256
    assert len(context.tokenizer) == TINY_VOCABULARY


ROWS: dict[str, dict[str, Any]] = {
    "tatsu-lab/alpaca": {"text": "Say hello.\n### Response:Hello."},
    "HuggingFaceH4/databricks_dolly_15k": {"instruction": "Add.", "input": "1 1", "output": "2"},
    "bigscience/P3": {"inputs": "1 + 1", "targets": "2"},
    "Muennighoff/P3": {"inputs": "1 + 1", "targets": "2"},
    "Muennighoff/flan": {"inputs": "1 + 1", "targets": "2"},
    "teknium/OpenHermes-2.5": {
        "conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]
    },
    "math-ai/StackMathQA": {"Q": "1 + 1?", "A": "2"},
    "AI-MO/NuminaMath-CoT": {
        "messages": [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "2"},
        ]
    },
    "multiple_choice": {"query": "1 + 1?", "choices": ["1", "2"], "gold": 1},
}


@pytest.mark.parametrize("cls", CATALOG.components(PreprocessorSpec), ids=lambda cls: cls.kind)
def test_a_preprocessor_conforms(cls: type[PreprocessorSpec]) -> None:
    check_component(cls, row=ROWS[cls.kind])


@pytest.mark.parametrize("family", ["GPT2Config", "LlamaConfig"])
def test_a_model_of_transformers_conforms(family: str, tmp_path: Path) -> None:
    import transformers

    sizes = {"vocab_size": 60, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
    more = {"max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    getattr(transformers, family)(**sizes, **more).save_pretrained(tmp_path)
    check_component(HFCausalLMSpec(pretrained_model_name_or_path=str(tmp_path), pretrained=False))


@pytest.mark.parametrize("packing", [None, 2.0])
def test_the_finetuning_loader_conforms(packing: float | None, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    rows = [{"prompt": f"{n} + 1 = ", "response": str(n + 1)} for n in range(80)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    dataset = FinetuningDatasetSpec(
        hf_name="json",
        hf_kwargs={"data_files": str(tmp_path / "rows.jsonl")},
        split="train",
        shuffle=True,
        packing_ratio=packing,
        cache_dir=str(tmp_path / "cache"),
    )
    spec = FinetuningDataSpec(dataset=dataset, num_workers=0)
    check_component(spec, context=tiny_context(tokenizer, max_seq_len=32))
