"""The perturbation test: silent on models that keep examples apart, loud on those that do not."""

import json
import logging
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from foundry_sdk import (
    DecoupledAdamWSpec,
    Duration,
    Finetuner,
    FinetuneSpec,
    FinetuningDatasetSpec,
    FinetuningDataSpec,
    LinearDecayWithWarmupSpec,
)
from foundry_sdk.batch import IGNORE_INDEX, Batch
from foundry_sdk.errors import RunError
from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec
from foundry_sdk.models.language_model import LanguageModel
from foundry_sdk.models.mpt.options import AttentionSpec
from foundry_sdk.models.mpt.spec import MPTSpec
from foundry_sdk.specs.run import EvalLoader
from foundry_sdk.testing import tiny_tokenizer
from foundry_sdk.training.isolation import (
    check_positions,
    isolation_of,
    look_at_model,
)
from foundry_sdk.training.reduced import SMALL, stand_in


def packed(*rows: list[int], vocabulary: int = 96) -> Batch:
    """Return rows of examples of these lengths, padded."""
    width = max(map(sum, rows)) + 3
    documents = torch.full((len(rows), width), -1)
    positions = torch.zeros_like(documents)
    for index, lengths in enumerate(rows):
        start = 0
        for number, length in enumerate(lengths):
            documents[index, start : start + length] = number
            positions[index, start : start + length] = torch.arange(length)
            start += length
    generator = torch.Generator().manual_seed(1)
    return Batch(
        input_ids=torch.randint(0, vocabulary, documents.shape, generator=generator),
        labels=torch.full_like(documents, IGNORE_INDEX),
        attention_mask=documents != -1,
        sequence_ids=documents,
        position_ids=positions,
    )


BATCH = packed([9, 40], [5, 7, 1, 12, 20])
SHAPE: dict[str, Any] = {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}
ROPE = {"rope": True, "rope_impl": "hf"}


def mpt(**attention: Any) -> MPTSpec:
    given = {"attn_impl": "torch", "attn_uses_sequence_id": True, **attention}
    return MPTSpec(**SHAPE, vocab_size=96, attn_config=AttentionSpec(**given))


@pytest.mark.parametrize(
    "attention",
    [
        {}, {"alibi": True}, {"attn_impl": "flash"}, {"attn_impl": "flex", **ROPE},
        {"sliding_window_size": 6}, {"attn_type": "grouped_query_attention", "kv_n_heads": 2},
    ],
)  # fmt: skip
def test_mpt_keeps_examples_apart(attention: dict[str, Any]) -> None:
    found = look_at_model(mpt(**attention), BATCH, seed=1)
    assert not isinstance(found, str)
    assert found.examples == 5
    assert found.others == 0 < found.own
    assert found.alone < 1e-5 * max(1, found.own)
    assert ("needs a GPU" in found.about) == (attention.get("attn_impl") == "flex")


def saved(tmp_path: Any, config: Any) -> HFCausalLMSpec:
    config.save_pretrained(tmp_path / "config")
    return HFCausalLMSpec(pretrained_model_name_or_path=str(tmp_path / "config"), pretrained=False)


def small(family: str, **changes: Any) -> Any:
    import transformers

    if family == "GPT2Config":
        return transformers.GPT2Config(**{"n_embd": 32, "n_layer": 2, "n_head": 4, **changes})
    options = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, **changes,
    }  # fmt: skip
    return getattr(transformers, family)(**options)


@pytest.mark.parametrize("family", ["GPT2Config", "MistralConfig", "Gemma2Config"])
def test_transformers_models_keep_examples_apart(tmp_path: Any, family: str) -> None:
    window = {} if family == "GPT2Config" else {"sliding_window": 6}
    found = look_at_model(saved(tmp_path, small(family, **window)), BATCH, seed=1)
    assert not isinstance(found, str)
    assert found.others == 0 < found.own
    assert found.alone < 1e-5 * max(1, found.own)


class Blind(LanguageModel):
    """A model that is given less than the batch says."""

    def __init__(self, inner: LanguageModel, flaw: str) -> None:
        super().__init__()
        self.inner, self.flaw, self.vocab_size = inner, flaw, inner.vocab_size

    def forward(self, batch: Batch) -> Tensor:
        if self.flaw == "mask":  # all of a row is one example; positions stay right
            assert batch.sequence_ids is not None
            batch = attrs.evolve(batch, sequence_ids=batch.sequence_ids.clamp(max=0))
        elif self.flaw == "positions":
            places = torch.arange(batch.input_ids.shape[1])
            batch = attrs.evolve(batch, position_ids=places.expand_as(batch.input_ids))
        hidden: Tensor = self.inner(batch)
        return hidden * 0 if self.flaw == "constant" else hidden

    def logits(self, hidden_states: Tensor) -> Tensor:
        return self.inner.logits(hidden_states)

    def head_weight(self) -> Tensor | None:
        return self.inner.head_weight()

    def init_weights(self, seed: int) -> None:
        self.inner.init_weights(seed)


@attrs.frozen(kw_only=True)
class BlindSpec(ModelSpec):
    """A model with a flaw, of the size that is looked at as it is."""

    kind = "blind"
    flaw: str
    inner: MPTSpec

    def build(self, *, device: str) -> LanguageModel:
        return Blind(self.inner.build(device=device), self.flaw)

    def parameters(self) -> int:
        return self.inner.parameters()

    def max_sequence_length(self) -> int | None:
        return self.inner.max_sequence_length()


@pytest.mark.parametrize(
    ("flaw", "attention", "problem"),
    [
        ("mask", {}, "they see each other"),
        ("mask", {"alibi": True}, "they see each other"),
        ("mask", {"sliding_window_size": 6}, "they see each other"),
        ("positions", {}, "positions do not begin again"),
        ("constant", {}, "nothing can be said"),
    ],
)
def test_a_flaw_is_found(flaw: str, attention: dict[str, Any], problem: str) -> None:
    spec = BlindSpec(flaw=flaw, inner=mpt(**attention))
    with pytest.raises(RunError, match=problem):
        look_at_model(spec, BATCH, seed=1)
    assert not isinstance(look_at_model(attrs.evolve(spec, flaw=""), BATCH, seed=1), str)


def test_a_transformers_model_without_its_mask_is_found(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "foundry_sdk.models.huggingface.causal_lm.document_positions",
        lambda ids: torch.arange(ids.shape[1]).expand_as(ids),
    )
    for family in ("GPT2Config", "LlamaConfig"):
        with pytest.raises(RunError, match="they see each other"):
            look_at_model(saved(tmp_path, small(family)), BATCH, seed=1)


def test_a_model_that_says_that_it_cannot_is_refused() -> None:
    with pytest.raises(RunError, match=r"set model\.attn_config\.attn_uses_sequence_id: true"):
        look_at_model(mpt(attn_uses_sequence_id=False), BATCH, seed=1)


def test_positions_that_go_on_are_found() -> None:
    check_positions(BATCH)
    assert BATCH.position_ids is not None
    wrong = BATCH.position_ids.clone()
    wrong[1, 5:12] += 5
    with pytest.raises(RunError, match=r"positions of an example are \[5, 6, 7"):
        check_positions(attrs.evolve(BATCH, position_ids=wrong))


def test_large_models_get_a_stand_in_with_their_kinds_of_attention(tmp_path: Any) -> None:
    attention = AttentionSpec(
        attn_type="grouped_query_attention", kv_n_heads=8, attn_uses_sequence_id=True, **ROPE
    )
    large = MPTSpec(d_model=4096, n_heads=32, n_layers=32, attn_config=attention)
    chosen = stand_in(large)
    assert not isinstance(chosen, str)
    assert isinstance(chosen.spec, MPTSpec)
    assert chosen.spec.parameters() < 2 * SMALL
    assert chosen.spec.attn_config == attrs.evolve(attention, kv_n_heads=2)
    assert chosen.spec.n_heads // chosen.spec.kv_heads == 32 // 8
    assert chosen.spec.dim_per_head == 128
    gemma = small(
        "Gemma3TextConfig", hidden_size=64, num_hidden_layers=30, vocab_size=262144,
        pad_token_id=200_000, sliding_window=6,
    )  # fmt: skip
    kinds = set(gemma.layer_types)
    assert len(kinds) == 2
    spec = saved(tmp_path, gemma)
    assert spec.parameters() < SMALL or not isinstance(stand_in(spec), str)
    wide = attrs.evolve(spec, config_overrides={"hidden_size": 128})
    taken = stand_in(wide)
    assert not isinstance(taken, str)
    assert isinstance(taken.spec, HFCausalLMSpec)
    assert set(taken.spec.config_overrides["layer_types"]) == kinds
    assert taken.spec.config_overrides["num_hidden_layers"] == 6
    assert taken.spec.parameters() < SMALL
    found = look_at_model(wide, BATCH, seed=1)
    assert not isinstance(found, str)
    assert found.others == 0


def test_long_rows_are_cut_example_by_example() -> None:
    long = packed([300] * 5, [900, 900])
    model = mpt().build(device="cpu")
    model.init_weights(1)
    found = isolation_of(model, long)
    assert found.examples == 5
    assert found.problem() is None


@pytest.fixture
def finetuner(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    rows = [{"prompt": f"{n} + {n} = ", "response": str(2 * n)} for n in range(60)]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(flaw: str, precision: str = "fp32", kernel: str = "torch") -> Finetuner:
        inner = MPTSpec(
            **SHAPE, vocab_size=258,
            attn_config=AttentionSpec(attn_impl=kernel, attn_uses_sequence_id=True),
        )  # fmt: skip
        dataset = FinetuningDatasetSpec(
            hf_name="json", split="train", hf_kwargs={"data_files": str(file)},
            cache_dir=str(tmp_path / "cache"), packing_ratio=4.0,
        )  # fmt: skip
        spec = FinetuneSpec(
            model=BlindSpec(flaw=flaw, inner=inner) if flaw else inner,
            tokenizer=tiny_tokenizer(tmp_path / "tokenizer"),
            optimizer=DecoupledAdamWSpec(lr=1e-3),
            scheduler=LinearDecayWithWarmupSpec(t_warmup=Duration.parse("0ba")),
            train_loader=FinetuningDataSpec(dataset=dataset),
            max_duration="1ba", max_seq_len=64, global_train_batch_size=4,
            device_train_microbatch_size=2, precision=precision,
            run_root=str(tmp_path / "runs"), log_to_console=False, progress_bar=False,
        )  # fmt: skip
        return Finetuner(spec)

    return make


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16"])
def test_a_run_looks_at_its_own_model_before_the_first_step(
    finetuner: Any, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "foundry_sdk"):
        assert finetuner("", precision).fit().steps == 1
    assert "packing: no example sees another (the others' loss moves by 0)" in caplog.text
    with pytest.raises(RunError, match=r"changes the loss of the others by .* they see each other"):
        finetuner("mask", precision).fit()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", ["torch", "flash", "flex"])
def test_a_run_looks_at_the_kernels_of_a_gpu(finetuner: Any, kernel: str) -> None:
    assert finetuner("", "amp_bf16", kernel).fit().steps == 1
    with pytest.raises(RunError, match="they see each other"):
        finetuner("mask", "amp_bf16", kernel).fit()


def test_a_run_warns_of_odd_examples(
    finetuner: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = finetuner("")
    lines = (tmp_path / "sums.jsonl").read_text().splitlines()
    (tmp_path / "sums.jsonl").write_text("\n".join([*lines, lines[0], lines[0]]) + "\n")
    (tmp_path / "other.jsonl").write_text(lines[3] + "\n" + lines[3].replace("6", "66") + "\n")
    dataset = attrs.evolve(
        run.spec.train_loader.dataset, hf_kwargs={"data_files": str(tmp_path / "other.jsonl")}
    )
    entry = EvalLoader(loader=FinetuningDataSpec(dataset=dataset))
    Finetuner(attrs.evolve(run.spec, eval_loader=(entry,), device_eval_batch_size=2)).fit()
    assert "train_loader: json:train: 2 of 62 examples are there more than once" in caplog.text
    assert "1 of 2 examples of eval are in train_loader too" in caplog.text
