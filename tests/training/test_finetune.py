"""Finetuning to the end: a small GPT-2, Llama and T5, from a config, learn ARC-Easy by heart."""

import os
from pathlib import Path

import pytest

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
            n_embd=128, n_layer=3, n_head=4, n_positions=256,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **small,
        )  # fmt: skip
    if kind == "llama":
        return hf.LlamaConfig(
            hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=256, **small,
        )  # fmt: skip
    return hf.T5Config(
        d_model=96, d_kv=24, d_ff=192, num_layers=2, num_decoder_layers=2, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=1,
        **small,
    )  # fmt: skip


def finetuner(folder, kind, tokenizer, *, steps, **dataset):
    from foundry_sdk.models.huggingface.spec import HFCausalLMSpec, HFSeq2SeqSpec

    config_of(kind).save_pretrained(folder / "config")
    model = HFSeq2SeqSpec if kind == "t5" else HFCausalLMSpec
    files = {"data_files": str(Path(str(DATA)) / "arc_easy_train.jsonl")}
    spec = FinetuneSpec(
        model=model(pretrained_model_name_or_path=str(folder / "config"), pretrained=False),
        tokenizer=TokenizerSpec(name=str(tokenizer)),
        optimizer=DecoupledAdamWSpec(lr=3e-3, betas=(0.9, 0.95), eps=1e-8),
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
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_arc_easy_is_learned_by_heart(tmp_path, tokenizer, kind):
    options = {"decoder_only_format": False} if kind == "t5" else {}
    done = finetuner(
        tmp_path, kind, tokenizer, steps="80ep", allow_pad_trimming=True, **options
    ).fit()
    assert done.train_loss < 0.1
