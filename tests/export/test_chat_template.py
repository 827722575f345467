"""The tokenizer of a run that learned chats has the template that they were written with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from foundry_sdk.checkpoint.ranks import SoloRanks
from foundry_sdk.checkpoint.state import model_and_optimizer_tensors
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.data import convert_finetuning
from foundry_sdk.data.contract import LoaderContext, TokenizerSpec
from foundry_sdk.data.finetuning.build import build_source
from foundry_sdk.data.finetuning.source import FinetuningSource
from foundry_sdk.data.finetuning.spec import (
    FinetuningDatasetSpec,
    FinetuningDataSpec,
    WeightedSourceSpec,
)
from foundry_sdk.data.tokenizer import load_tokenizer
from foundry_sdk.export.architectures import architecture_of
from foundry_sdk.export.certificate import learned_template
from foundry_sdk.export.files import write_config, write_weights
from foundry_sdk.export.trained import load_trained
from foundry_sdk.models.mpt.model import MPT
from foundry_sdk.runs.record import RunRecord
from foundry_sdk.testing import tiny_mpt_spec, tiny_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who wrote 'Faust'?"},
    {"role": "assistant", "content": "Goethe, "},
    {"role": "user", "content": " and\nwhen? "},
    {"role": "assistant", "content": "1808."},
]
CHATS = [{"messages": CHAT}, {"messages": CHAT[1:3]}]
PROMPTS = [{"prompt": "Who?", "response": "Goethe."}] * 2
OWN = "{% for message in messages %}[{{ message.content }}]{% endfor %}"

Run = Callable[..., tuple[Path, FinetuningSource]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that writes what a run on data leaves, and returns the data's source."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setenv("FOUNDRY_CACHE", str(tmp_path / "foundry"))
    tiny_tokenizer(tmp_path / "tokenizer")

    def make(data: dict[str, Any] | FinetuningDatasetSpec) -> tuple[Path, FinetuningSource]:
        dataset = data if isinstance(data, FinetuningDatasetSpec) else mixture(tmp_path, data)
        tokenizer = load_tokenizer(tiny_spec(tmp_path))
        context = LoaderContext(
            tokenizer=tokenizer,
            rank=0,
            world_size=1,
            device_batch=1,
            max_seq_len=512,
            seed=0,
            training=True,
        )
        source = build_source(FinetuningDataSpec(dataset=dataset), context)
        folder = tmp_path / "run"
        model = tiny_mpt_spec(vocab_size=258).build(device="cpu")
        model.init_weights(0)
        values = {
            "model": model.config(),
            "tokenizer": {"name": str(tmp_path / "tokenizer"), "kwargs": {}},
            "train_loader": {"name": "finetuning"},
        }
        record = RunRecord.open(tmp_path, "run", rank=0, resume=False)
        record.start(
            resolved_spec=values,
            choices={},
            devices={},
            data={"train_loader": source.describe()},
            seeds={},
            command=[],
        )
        record.release()
        store = CheckpointStore(folder / "checkpoints", SoloRanks())
        store.save(1, model_and_optimizer_tensors(model)[0], {"model": model.config()}, {})
        store.close()
        return folder, source

    return make


def tiny_spec(tmp_path: Path) -> TokenizerSpec:
    return TokenizerSpec(name=str(tmp_path / "tokenizer"))


def mixture(tmp_path: Path, data: dict[str, Any]) -> FinetuningDatasetSpec:
    """Return a data set of several sources."""
    sources = {}
    for name, rows in data.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files = {"data_files": str(file)}
        sources[name] = WeightedSourceSpec(hf_name="json", split="train", hf_kwargs=files, weight=1)
    return FinetuningDatasetSpec(datasets=sources)


def exported_tokenizer(run: Path, out: Path) -> Any:
    """Write an export's files and return the tokenizer that transformers reads from there."""
    trained = load_trained(run)
    assert isinstance(trained.model, MPT)
    out.mkdir()
    architecture = architecture_of(trained.model.spec)
    parameters = dict(trained.model.named_parameters())
    write_weights(out, architecture, parameters, dtype=torch.float32)
    write_config(out, architecture, tied=True, dtype=torch.float32, tokenizer=trained.tokenizer)
    return AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize("with_prompts", [False, True])
def test_transformers_renders_what_finetuning_tokenized(
    run: Run, tmp_path: Path, with_prompts: bool
) -> None:
    folder, source = run({"a": CHATS} | ({"b": PROMPTS} if with_prompts else {}))
    tokenizer = exported_tokenizer(folder, tmp_path / "out")
    assert learned_template(tokenizer) == "chatml"
    for number, row in enumerate(CHATS):
        turns = source.parts[0].examples.turns(number)
        read = np.concatenate([part for turn in turns for part in turn]).tolist()
        assert tokenizer.apply_chat_template(row["messages"], return_dict=False) == read
        prompt = tokenizer.apply_chat_template(
            row["messages"][:-1], add_generation_prompt=True, return_dict=False
        )
        assert prompt == read[: len(read) - len(turns[-1][1])]


def test_prompts_and_responses_leave_the_tokenizer_as_it_was(run: Run, tmp_path: Path) -> None:
    folder, _ = run({"a": PROMPTS})
    tokenizer = exported_tokenizer(folder, tmp_path / "out")
    assert not tokenizer.chat_template
    assert learned_template(tokenizer) is None
    assert not list((tmp_path / "out").glob("chat_template*"))


def test_a_tokenizers_own_template_stays(run: Run, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_spec(tmp_path))
    tokenizer.chat_template = OWN
    tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    folder, _ = run({"a": [{"messages": CHAT[1:3]}]})
    exported = exported_tokenizer(folder, tmp_path / "out")
    assert exported.chat_template == OWN
    assert learned_template(exported) is None


@pytest.mark.parametrize(("rows", "template"), [(CHATS, "chatml"), (PROMPTS, None)])
def test_what_was_tokenized_beforehand(
    run: Run, tmp_path: Path, rows: list[dict[str, Any]], template: str | None
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = str(tmp_path / "tokenizer")
    shards = tmp_path / "shards"
    convert_finetuning(dataset=str(file), splits=["train"], out_root=shards, tokenizer=tokenizer)
    folder, _ = run(FinetuningDatasetSpec(local=str(shards), split="train"))
    assert learned_template(load_trained(folder).tokenizer) == template


def test_a_run_without_its_record_says_nothing(run: Run) -> None:
    folder, _ = run({"a": CHATS})
    (folder / "run.json").unlink()
    assert learned_template(load_trained(folder).tokenizer) is None
