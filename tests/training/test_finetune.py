"""Finetuning to the end: a small GPT-2, Llama and T5, from a config, learn ARC-Easy by heart."""

import json
import os
from pathlib import Path

import pytest
import torch

from foundry_sdk import (
    DecoupledAdamWSpec,
    Duration,
    Finetuner,
    FinetuneSpec,
    FinetuningDatasetSpec,
    FinetuningDataSpec,
    LinearDecayWithWarmupSpec,
    TokenizerSpec,
)
from foundry_sdk.data.preprocessors import multiple_choice
from foundry_sdk.export.exporter import export_model

DATA = os.environ.get("FOUNDRY_TEST_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="FOUNDRY_TEST_DATA is not set")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A BPE of 1000 tokens, trained on the file itself, so that models can be small."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train([str(Path(str(DATA)) / "arc_easy_train.jsonl")], trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


def config_of(kind):
    import transformers as hf

    small = {"vocab_size": 1024, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if kind == "gpt2":
        return hf.GPT2Config(
            n_embd=64, n_layer=2, n_head=4, n_positions=256,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **small,
        )  # fmt: skip
    if kind == "llama":
        return hf.LlamaConfig(
            hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=256, **small,
        )  # fmt: skip
    return hf.T5Config(
        d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=2, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=1,
        **small,
    )  # fmt: skip


def finetuner(folder, kind, tokenizer, *, steps, lr=5e-3, **dataset):
    from foundry_sdk.models.huggingface.spec import HFCausalLMSpec, HFSeq2SeqSpec

    config_of(kind).save_pretrained(folder / "config")
    model = HFSeq2SeqSpec if kind == "t5" else HFCausalLMSpec
    files = {"data_files": str(Path(str(DATA)) / "arc_easy_train.jsonl")}
    spec = FinetuneSpec(
        model=model(pretrained_model_name_or_path=str(folder / "config"), pretrained=False),
        tokenizer=TokenizerSpec(name=str(tokenizer)),
        optimizer=DecoupledAdamWSpec(lr=lr, betas=(0.9, 0.95), eps=1e-8),
        scheduler=LinearDecayWithWarmupSpec(t_warmup=Duration.parse("0ba")),
        train_loader=FinetuningDataSpec(
            dataset=FinetuningDatasetSpec(
                hf_name="json", split="train", hf_kwargs=files, preprocessor=multiple_choice(),
                shuffle=True, cache_dir=str(folder / "cache"), **dataset,
            )
        ),
        max_duration=steps,
        max_seq_len=256,
        global_train_batch_size=10,
        device_train_microbatch_size=10,
        precision="fp32",
        run_root=str(folder / "runs"),
        run_name=kind,
        log_to_console=False,
        progress_bar=False,
        seed=1,
    )  # fmt: skip
    return Finetuner(spec)


@pytest.fixture(autouse=True)
def own_arrow_files(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {"allow_pad_trimming": True}),
        ("llama", {"packing_ratio": 2.0}),
        ("t5", {"allow_pad_trimming": True, "decoder_only_format": False}),
    ],
)
def test_a_few_steps_lower_the_loss(tmp_path, tokenizer, kind, options):
    first = finetuner(tmp_path / "a", kind, tokenizer, steps="1ba", **options).fit()
    later = finetuner(tmp_path / "b", kind, tokenizer, steps="15ba", **options).fit()
    assert later.steps == 15
    assert later.train_loss < first.train_loss - 1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "lr"), [("gpt2", 5e-3), ("t5", 3e-3)])
def test_arc_easy_is_learned_by_heart_and_told_by_the_exported_model(tmp_path, tokenizer, kind, lr):
    options = {"decoder_only_format": False} if kind == "t5" else {}
    run = finetuner(
        tmp_path, kind, tokenizer, steps="60ep", lr=lr, allow_pad_trimming=True, **options
    )
    done = run.fit()
    assert done.train_loss < 0.1
    export_model(done.run_dir, tmp_path / "exported")
    prompts, answers = examples()
    assert len(prompts) == 100
    assert told(tmp_path / "exported", kind, prompts) == answers


def examples():
    """Return prompts and answers as ARC-Easy's usual format has them."""
    lines = (Path(str(DATA)) / "arc_easy_train.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    prompts = [
        f"{row['query']}\nOptions:" + "".join(f"\n - {c}" for c in row["choices"]) + "\nAnswer: "
        for row in rows
    ]
    return prompts, [row["choices"][row["gold"]] for row in rows]


def told(folder, kind, prompts):
    """Return what transformers generates from ``folder``, greedily, to the end of each answer."""
    import transformers as hf

    auto = hf.AutoModelForSeq2SeqLM if kind == "t5" else hf.AutoModelForCausalLM
    model = auto.from_pretrained(folder).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
        )[0]
        written = written[1:] if kind == "t5" else written[ids.shape[1] :]
        texts.append(tokenizer.decode(written, skip_special_tokens=True))
    return texts
