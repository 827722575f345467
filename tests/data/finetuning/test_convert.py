"""Examples in shards: as streaming reads them, and as the loader does."""

import json

import pytest
import torch

from foundry_sdk.data import convert_finetuning
from foundry_sdk.data.mds import import_streaming
from foundry_sdk.data.preprocessors import multiple_choice
from foundry_sdk.errors import DataError


def read_back(folder):
    """Return a folder's samples, read by streaming's own reader."""
    dataset = import_streaming().StreamingDataset(local=str(folder), batch_size=1, shuffle=False)
    return [dataset[number] for number in range(dataset.num_samples)]


def same(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.input_ids, b.input_ids)
        assert torch.equal(a.labels, b.labels)


@pytest.fixture
def convert(tmp_path, jsonl):
    def run(rows, **options):
        given = {
            "dataset": "json", "splits": ["train"], "data_files": [str(jsonl(rows))],
            "out_root": tmp_path / "out", "size_limit": 2000,
        }  # fmt: skip
        cards = convert_finetuning(**{**given, **options})
        return tmp_path / "out" / "train", cards["train"]

    return run


def test_prompts_are_written_as_streaming_reads_them(convert, prompts, source):
    rows = [{"prompt": "käse ☃", "completion": "ü"}, *prompts(60)[1:]]
    rows[0]["response"] = rows[0].pop("completion")
    folder, card = convert(rows, compression="zstd")
    assert read_back(folder) == rows
    assert (card.kind, card.samples, card.documents) == ("finetuning", 60, 60)
    assert len(card.shards) > 1
    same(list(source(local=str(folder.parent), split="train")), list(source(rows)))


def test_a_completion_becomes_a_response(convert):
    folder, _ = convert([{"prompt": "a", "completion": "b"}])
    assert read_back(folder) == [{"prompt": "a", "response": "b"}]


def test_chats_are_written_as_messages(convert, source):
    chat = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    folder, _ = convert([{"messages": chat}] * 3)
    assert read_back(folder) == [{"messages": chat}] * 3
    same(list(source(local=str(folder))), list(source([{"messages": chat}] * 3)))


def test_with_a_tokenizer_turns_are_written_and_what_has_no_target_is_left_out(
    convert, prompts, source, bpe, bpe_folder
):
    rows = prompts(20)
    rows[3] = {"prompt": "", "response": "dog"}
    rows[7] = {"prompt": "the cat " * 50, "response": "dog"}
    folder, card = convert(rows, tokenizer=str(bpe_folder), max_seq_len=64)
    assert (card.documents, card.samples, card.skipped_documents) == (20, 18, 2)
    written = read_back(folder)
    assert written[0]["turns"] == [
        {"input_ids": bpe(rows[0]["prompt"])["input_ids"], "labels": bpe("dog ")["input_ids"]}
    ]
    kept = [row for number, row in enumerate(rows) if number not in (3, 7)]
    same(list(source(local=str(folder))), list(source(kept)))


@pytest.mark.parametrize("given", ["component", "function"])
def test_rows_go_through_a_preprocessor(convert, given):
    rows = [{"query": "Q?", "choices": ["x", "y"], "gold": 1}]
    chosen = multiple_choice() if given == "component" else multiple_choice().build()
    folder, card = convert(rows, preprocessor=chosen)
    assert read_back(folder) == [multiple_choice().build()(rows[0])]
    assert card.options["preprocessor"][0] == "multiple_choice"


def test_what_is_there_is_kept_resumed_or_replaced(convert, prompts):
    folder, card = convert(prompts(5))
    with pytest.raises(DataError, match="not empty"):
        convert(prompts(5))
    assert convert(prompts(5), resume=True)[1] == card
    with pytest.raises(DataError, match="data of another conversion"):
        convert(prompts(6), resume=True)
    assert convert(prompts(6), overwrite=True)[1].samples == 6
    assert len(read_back(folder)) == 6


def test_wrong_input_is_refused_with_its_place(convert, prompts, bpe_folder):
    with pytest.raises(DataError, match=r"json:train row 0: has the keys 'prompt', 'x'"):
        convert(prompts(2), preprocessor=wrong)
    with pytest.raises(DataError, match="give one file per split"):
        convert(prompts(2), splits=["train", "test"])
    with pytest.raises(DataError, match="data_files: required with 'json'"):
        convert(prompts(2), data_files=())
    with pytest.raises(DataError, match="none has anything to learn"):
        convert([{"prompt": "", "response": ""}], tokenizer=str(bpe_folder), overwrite=True)


def test_the_command_takes_a_file_and_a_function_of_a_module(
    jsonl, prompts, source, tmp_path, monkeypatch
):
    from typer.testing import CliRunner

    from foundry_sdk.cli.main import app

    rows = prompts(12)
    asked = [{"q": row["prompt"], "a": row["response"]} for row in rows]
    (tmp_path / "formatting.py").write_text(
        "def example(row):\n    return {'prompt': row['q'], 'response': row['a']}\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ["data", "convert", "finetuning", "--dataset", str(jsonl(asked, "asked.jsonl"))]
    done = CliRunner().invoke(
        app,
        [
            *command,
            "--preprocessor",
            "formatting:example",
            "--out_root",
            "out",
            "--num_workers",
            "2",
        ],
    )
    assert done.exit_code == 0, done.output
    assert "--num-workers: accepted without effect" in done.output
    assert read_back(tmp_path / "out" / "train") == rows
    same(list(source(local="out", split="train")), list(source(rows)))
    same(list(source(hf_name=str(jsonl(rows)), split="train")), list(source(rows)))
    refused = CliRunner().invoke(app, [*command, "--out-root", "other"])
    assert refused.exit_code != 0
    assert "--skip-preprocessing" in str(refused.exception)


def test_a_file_is_one_split_and_a_local_copy_is_of_a_bucket(jsonl, prompts, tmp_path):
    file = str(jsonl(prompts(3)))
    with pytest.raises(DataError, match="is a file, which is one split"):
        convert_finetuning(dataset=file, splits=["train", "test"], out_root=tmp_path / "out")
    with pytest.raises(DataError, match="is local already"):
        convert_finetuning(dataset=file, out_root=tmp_path / "out", local=tmp_path / "copy")


def wrong(row):
    return {"prompt": "a", "x": json.dumps(row)}
