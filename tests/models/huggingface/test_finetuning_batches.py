"""A batch of the finetuning loader has the loss and gradients that plain transformers computes.

The reference tokenizes, masks and pads by itself, and lets transformers shift the labels.
"""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from families import make, saved
from hf_ranks import tokenizer_in

from foundry_sdk.batch import Batch
from foundry_sdk.data.contract import LoaderContext, TokenizerSpec
from foundry_sdk.data.finetuning.spec import FinetuningDatasetSpec, FinetuningDataSpec
from foundry_sdk.data.tokenizer import load_tokenizer
from foundry_sdk.losses.specs import CrossEntropySpec, FusedCrossEntropySpec
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec, HFSeq2SeqSpec
from foundry_sdk.models.language_model import LanguageModel
from foundry_sdk.training.assemble import _loss
from foundry_sdk.training.objective import Objective

DECODERS = ("gpt2", "llama", "mistral", "qwen2", "gpt_neox", "gemma2", "cohere", "granite", "mpt")
FAMILIES = [
    each if each in {"llama", "mpt"} else pytest.param(each, marks=pytest.mark.slow)
    for each in DECODERS
]
EXAMPLES, LENGTH, END = 8, 24, 59


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """Prompts and responses of words, none longer than a third of a row."""
    numbers = random.Random(3)  # noqa: S311 - not for secrets

    def words(count: int) -> str:
        return " ".join(f"w{numbers.randrange(1, END)}" for _ in range(count))

    return [{"prompt": words(1 + n % 4), "response": words(1 + n % 3)} for n in range(EXAMPLES)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> Path:
    """A folder with the rows as JSON Lines and a tokenizer; models come beside them."""
    folder = tmp_path_factory.mktemp("finetuning")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    tokenizer_in(folder / "tokenizer")
    return folder


def batches(
    place: Path, size: int, *, encoder_decoder: bool = False, **options: Any
) -> list[Batch]:
    """Return an epoch of the loader."""
    context = LoaderContext(
        tokenizer=load_tokenizer(TokenizerSpec(name=str(place / "tokenizer"))),
        rank=0,
        world_size=1,
        device_batch=size,
        max_seq_len=LENGTH,
        seed=17,
        training=True,
        encoder_decoder=encoder_decoder,
        isolates_documents="packing_ratio" in options,
        cache_dir=None,
    )
    dataset = FinetuningDatasetSpec(
        hf_name="json",
        split="train",
        hf_kwargs={"data_files": str(place / "rows.jsonl"), "cache_dir": str(place / "arrow")},
        cache_dir=str(place / "tokenized"),
        **options,
    )
    found = list(FinetuningDataSpec(dataset=dataset, drop_last=False).build(context))
    assert sum(batch.label_count() for batch in found) == sum(
        len(labels) for _, labels in map(ids_of, json_rows(place))
    )
    return found


def json_rows(place: Path) -> list[dict[str, str]]:
    return list(map(json.loads, (place / "rows.jsonl").read_text("utf-8").splitlines()))


def ids_of(row: dict[str, str]) -> tuple[list[int], list[int]]:
    """Return prompt and response as ids; a word is its number."""
    prompt, response = (
        [int(word[1:]) for word in row[part].split()] for part in ("prompt", "response")
    )
    return prompt, [*response, END]


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def reference(family: str, rows: list[dict[str, str]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the mean loss over all targets, and gradients, by transformers alone."""
    model = make(family)
    pairs = list(map(ids_of, rows))
    if family == "t5":
        prompts = [prompt for prompt, _ in pairs]
        inputs, labels = padded(prompts, 0), padded([response for _, response in pairs], -100)
    else:
        prompts = [prompt + response for prompt, response in pairs]
        inputs = padded(prompts, 0)
        labels = padded([[-100] * len(prompt) + response for prompt, response in pairs], -100)
    mask = padded([[1] * len(prompt) for prompt in prompts], 0)
    loss = model(input_ids=inputs, attention_mask=mask, labels=labels).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return float(loss.detach()), gradients


def ours(
    model: LanguageModel, loss: Any, found: list[Batch]
) -> tuple[float, dict[str, torch.Tensor]]:
    objective = Objective(model, loss.build())
    outputs = [objective(batch) for batch in found]
    count = sum(int(output.token_count) for output in outputs)
    mean = torch.stack([output.loss_sum for output in outputs]).sum() / count
    mean.backward()
    names = dict(getattr(model, "model", model).named_parameters())
    return float(mean.detach()), {name: p.grad for name, p in names.items() if p.grad is not None}


def model_of(place: Path, family: str, **fields: Any) -> Any:
    kind = HFSeq2SeqSpec if family == "t5" else HFCausalLMSpec
    model = kind(pretrained_model_name_or_path=str(place / family), **fields).build(device="cpu")
    model.init_weights(0)
    return model


def check(
    got: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]]
) -> None:
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    assert set(got[1]) == set(expected[1])
    for name, gradient in expected[1].items():
        torch.testing.assert_close(got[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder(place: Path, rows: list[dict[str, str]], family: str) -> None:
    saved(family, place)
    expected = reference(family, rows)
    apart, packed = batches(place, EXAMPLES), batches(place, 2, packing_ratio=2)
    assert sum(len(batch) for batch in packed) < EXAMPLES
    assert any(int(batch.sequence_ids.max()) > 0 for batch in packed)
    own: dict[str, Any] = {}
    if family == "mpt":
        own["config_overrides"] = {"attn_config": {"attn_uses_sequence_id": True}}
    for loss in (CrossEntropySpec(), FusedCrossEntropySpec()):
        check(ours(model_of(place, family), loss, apart), expected)
        check(ours(model_of(place, family, **own), loss, packed), expected)


def test_an_encoder_decoder(place: Path, rows: list[dict[str, str]]) -> None:
    saved("t5", place)
    found = batches(place, EXAMPLES, encoder_decoder=True, decoder_only_format=False)
    begun = found[0].decoder_input_ids
    assert begun is not None
    assert int(begun[0, 0]) == END != make("t5").config.decoder_start_token_id
    for loss in (CrossEntropySpec(), FusedCrossEntropySpec()):
        check(ours(model_of(place, "t5"), loss, found), reference("t5", rows))


def test_a_head_that_cannot_be_fused_falls_back_and_says_so(
    place: Path, rows: list[dict[str, str]]
) -> None:
    """On a GPU the fused loss is taken where it can be, softcaps and factors included."""
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"))
    unsaid: Any = SimpleNamespace(loss=None)
    for family in ("llama", "gemma2", "granite", "phi"):
        saved(family, place)
    for family in ("llama", "gemma2", "granite"):
        choices: dict[str, str] = {}
        assert _loss(unsaid, model_of(place, family), on_gpu, choices) == FusedCrossEntropySpec()
    capped, scaled = model_of(place, "gemma2"), model_of(place, "granite")
    assert (capped.head_softcap(), capped.head_scale()) == (2.0, 1.0)
    assert scaled.head_scale() == pytest.approx(1 / 3, rel=1e-5)
    model = model_of(place, "phi")
    choices = model.choices()
    chosen = _loss(unsaid, model, on_gpu, choices)
    assert chosen == CrossEntropySpec()
    assert "no plain head" in choices["loss"]
    assert "its head has a bias" in choices["model.head"]
    check(ours(model, chosen, batches(place, EXAMPLES)), reference("phi", rows))
