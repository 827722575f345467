"""What the preflight says, against numbers counted by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from foundry_sdk.data.finetuning import preflight
from foundry_sdk.data.finetuning.preflight import fingerprints, inspect_loader, shared_examples
from foundry_sdk.data.finetuning.spec import FinetuningDatasetSpec, FinetuningDataSpec
from foundry_sdk.data.finetuning.store import TokenizedExamples


@pytest.fixture
def inspect(jsonl, context):
    def run(rows, name="train.jsonl", length=64, *, apart=False, **changes):
        files = {"data_files": str(jsonl(rows, name))}
        dataset = FinetuningDatasetSpec(hf_name="json", split="train", hf_kwargs=files, **changes)
        where = context(max_seq_len=length, encoder_decoder=apart)
        return inspect_loader("train_loader", FinetuningDataSpec(dataset=dataset), where, samples=2)

    return run


def test_counts_are_those_of_the_rows(inspect, prompts, bpe):
    rows = [*prompts(10), {"prompt": "", "response": "dog"}, prompts(1)[0]]
    rows.append({"prompt": "cat", "response": "the dog " * 90})
    report = inspect(rows)
    (found,) = report.sources
    ids = [(bpe(r["prompt"])["input_ids"], bpe(r["response"])["input_ids"]) for r in rows]
    kept = [pair for pair in ids if pair[0] and pair[1]]
    assert (found.examples, found.kept, found.cut, found.repeated) == (13, 12, 1, 1)
    assert found.ending == 11
    assert found.tokens == sum(min(len(p) + len(r) + 1, 64) for p, r in kept)
    assert found.targets == sum(min(len(r) + 1, 64 - len(p)) for p, r in kept)
    learned = sorted(min(len(r) + 1, 64 - len(p)) for p, r in kept)
    assert found.learned_of_each == (learned[0], np.median(learned), learned[-1])
    assert found.longest[0] == (12, len(ids[12][0]) + len(ids[12][1]))
    text = "\n".join(found.warnings())
    assert "1 of 13 examples are left out" in text
    assert "1 of 12 examples are cut, and 1 do not learn to end" in text
    assert "1 of 12 examples are there more than once" in text


def test_samples_are_cut_where_learning_begins(inspect, prompts):
    report = inspect(prompts(3), target_prompts="none")
    row = prompts(3)[0]
    assert [(p.text, p.learned) for p in report.samples[0]] == [
        (row["prompt"], False),
        (row["response"] + "<eos>", True),
    ]
    apart = inspect(prompts(3), apart=True)
    assert [p.learned for p in apart.samples[0]] == [False, True]
    assert apart.sources[0].ending == 3


def test_examples_in_both_training_and_evaluation_are_counted(inspect, prompts):
    train = inspect(prompts(8))
    other = inspect([*prompts(2), {"prompt": "new", "response": "log"}], "eval.jsonl")
    assert shared_examples(train, other) == 2
    assert len(other.fingerprints) == 3


def tokenized(examples):
    """Return examples, each a list of segments, as they are kept."""
    segments = [segment for example in examples for segment in example]
    return TokenizedExamples(
        tokens=np.array([each for segment in segments for each in segment], np.int32),
        segments=np.cumsum([0, *map(len, segments)]),
        examples=np.cumsum([0, *map(len, examples)]),
        folder=Path(),
        digest="",
    )


def test_fingerprints_tell_apart_what_differs_and_nothing_else(monkeypatch):
    draw = np.random.default_rng(1)
    examples = [
        [draw.integers(0, 3, draw.integers(0, 3)).tolist() for _ in range(2 * draw.integers(1, 3))]
        for _ in range(2000)
    ]
    examples += [
        [],
        [[1, 2], [3]],
        [[2, 1], [3]],
        [[1], [2, 3]],
        [[1], [2], [3], []],
        [[1, 2, 3], []],
    ]
    whole = fingerprints(tokenized(examples))
    assert len(set(whole.tolist())) == len({json.dumps(each) for each in examples})
    assert len(set(zip(whole.tolist(), map(json.dumps, examples), strict=True))) == len(set(whole))
    monkeypatch.setattr(preflight, "_CHUNK", 5)
    assert (fingerprints(tokenized(examples)) == whole).all()
    assert (fingerprints(tokenized(examples[7:20])) == whole[7:20]).all()


def test_packing_is_reported(inspect, prompts):
    report = inspect(prompts(60), packing_ratio=2.0)
    assert report.ratio == 2
    assert report.batches == 60 // 8 + 1
    assert 0 < report.efficiency <= 1
    assert 0 <= report.waste < 1
    assert int(report.packed.sequence_ids.max()) >= 1
    assert inspect(prompts(60)).efficiency is None
    assert inspect(prompts(60)).packed is None


@pytest.fixture
def check(tmp_path, jsonl, prompts, bpe_folder):
    """Return a function that runs ``foundry data check`` on a file."""
    from typer.testing import CliRunner

    from foundry_sdk.cli.main import app

    file = tmp_path / "run.yaml"
    model = {
        "name": "mpt_causal_lm", "max_seq_len": 64, "vocab_size": 512, "d_model": 32, "n_heads": 2,
        "n_layers": 2, "attn_config": {"attn_impl": "torch", "attn_uses_sequence_id": True},
    }  # fmt: skip
    file.write_text(
        json.dumps(
            {
                "max_seq_len": 64,
                "model": model,
                "tokenizer": {"name": str(bpe_folder)},
                "optimizer": {"name": "decoupled_adamw", "lr": 0.1},
                "scheduler": {"name": "linear_decay_with_warmup", "t_warmup": "0ba"},
                "max_duration": "1ba",
                "global_train_batch_size": 4,
                **{
                    key: {
                        "name": "finetuning",
                        "dataset": {
                            "hf_name": "json",
                            "split": "train",
                            "hf_kwargs": {"data_files": str(jsonl(prompts(count), f"{key}.jsonl"))},
                        },
                    }
                    for key, count in (("train_loader", 9), ("eval_loader", 4))
                },
            }
        )
    )
    return lambda *given: CliRunner().invoke(app, ["data", "check", str(file), *given])


def test_a_report_needs_no_colour(check):
    done = check("--samples", "1")
    assert done.exit_code == 0, done.output
    assert "train_loader: 3 batches an epoch" in done.output
    assert "json:train: 9 of 9 examples are kept" in done.output
    assert "the cat 0 sat⟦dog <eos>⟧" in done.output
    assert "warning: 4 of 4 examples of eval_loader are in train_loader too" in done.output
    assert "packing" not in done.output


def test_packed_examples_are_shown_not_to_see_each_other(check, monkeypatch):
    packed = check("train_loader.dataset.packing_ratio=2")
    assert packed.exit_code == 0, packed.output
    assert "packing: PASS, no example sees another. Changing every second of" in packed.output
    assert "those of the others by 0; each begins at position 0" in packed.output
    monkeypatch.setattr(
        "foundry_sdk.models.mpt.model.MPT._documents",
        lambda self, batch: batch.sequence_ids.clamp(max=0),
    )
    leaking = check("train_loader.dataset.packing_ratio=2")
    assert leaking.exit_code != 0
    assert "they see each other" in str(leaking.exception)
