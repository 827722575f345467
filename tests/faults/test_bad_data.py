"""Data that no run can be made on: one message with its place, exit code 2, before any step.

What an index may hold is in ``tests/data/test_index.py``, damaged shards are in
``tests/data/test_text_faults.py``, what a conversion refuses in ``tests/data/convert``.
"""

import json
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from foundry_sdk.data.card import DataCard

Material = Any  # the one of conftest.py
USER = {"role": "user", "content": "w1"}
ANSWER = {"role": "assistant", "content": "w2"}


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where training would begin."""

    def refuse(*_: object, **__: object) -> NoReturn:
        pytest.fail("training began before the mistake was found")

    monkeypatch.setattr("foundry_sdk.training.run._Run._train", refuse)


# ---- what the disk shows, before a device is taken

Spoil = Callable[[Material], list[str]]


def _index(key: str, value: object) -> Spoil:
    def spoil(material: Material) -> list[str]:
        material.edit_index(key, value)
        return []

    return spoil


def _plain_folder(material: Material) -> list[str]:
    (material.folder / "plain").mkdir()
    return ["train_loader.dataset.local=plain"]


def _split(material: Material) -> list[str]:
    material.tokens("whole/train", 4)
    return ["train_loader.dataset.local=whole", "train_loader.dataset.split=val"]


def _no_index_file(material: Material) -> list[str]:
    (material.folder / "data" / "index.json").write_text("{")
    return []


def _other_columns(material: Material) -> list[str]:
    material.texts("pairs", {"prompt": "w1", "response": "w2"})
    return ["train_loader.dataset.local=pairs"]


def _floats(material: Material) -> list[str]:
    material.edit_index("column_encodings", ["ndarray:float32"])
    return []


def _one_folder(material: Material) -> list[str]:
    del material
    return [
        "train_loader.dataset.local=null",
        "train_loader.dataset.streams={one: {local: data}, two: {local: ./data}}",
    ]


def _evaluation(material: Material) -> list[str]:
    del material
    return ["eval_loader={name: text, dataset: {local: nowhere/data}, num_workers: 0}"]


ON_DISK: dict[str, tuple[Spoil, str]] = {
    "no such folder": (
        lambda _: ["train_loader.dataset.local=no/where"],
        "train_loader: no/where: there is no such folder (working directory ",
    ),
    "no such folder of an evaluation": (
        _evaluation,
        "eval_loader: nowhere/data: there is no such folder",
    ),
    "a folder without an index": (
        _plain_folder,
        "plain: no index.json, so this is no folder of MDS shards; make one with foundry data",
    ),
    "a split that is not there": (
        _split,
        "whole does not contain split 'val'; it has the splits ['train']",
    ),
    "an index that is cut short": (_no_index_file, "index.json: not an index of MDS shards"),
    "columns of another task": (
        _other_columns,
        "needs a column tokens or text, found ['prompt', 'response']; use the finetuning loader",
    ),
    "tokens that are no whole numbers": (_floats, "tokens are ndarray:float32; integers are"),
    "a pickled column": (_index("column_encodings", ["pkl"]), "pickled data can run code"),
    "a shard's name that leads out of the folder": (
        _index("raw_data.basename", "../../elsewhere.mds"),
        "'../../elsewhere.mds', expected a file name inside the folder (this one escapes its root)",
    ),
    "a shard's name that is an absolute path": (
        _index("raw_data.basename", "/etc/passwd"),
        "'/etc/passwd', expected a file name inside the folder (this one escapes its root)",
    ),
    "more samples than there is memory": (
        _index("samples", 10**12),
        "shards[0].samples: found 1000000000000, expected a whole number from 0 to ",
    ),
    "no samples": (_index("samples", 0), "the data has no samples; convert it again"),
    "two streams in one folder": (_one_folder, "streams 'one' and 'two' lie in one folder"),
    "a checkpoint to begin from that is not there": (
        lambda _: ["load_path=no/run"],
        "load_path: there is no 'no/run' (working directory ",
    ),
}


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize("case", ON_DISK)
def test_what_is_wrong_with_shards_is_found_before_a_device_is_taken(case, foundry, material):
    spoil, message = ON_DISK[case]
    path = material.pretrain()
    done = foundry("train", path, *spoil(material))
    assert (done.code, len(done.lines)) == (2, 1)
    assert message in done.err
    assert not (material.folder / "runs").exists()


@pytest.mark.usefixtures("no_run")
def test_a_file_of_examples_that_is_not_there(foundry, material):
    done = foundry("train", material.finetune(), "train_loader.dataset.hf_name=./other.jsonl")
    assert (done.code, len(done.lines)) == (2, 1)
    assert "train_loader: dataset.hf_name: there is no file or folder './other.jsonl'" in done.err
    assert "split 'train'" in done.err


# ---- what its content shows

ROWS: dict[str, tuple[object, str]] = {
    "a line that is no JSON": (
        b'{"prompt": "w1", "response": "w2"}\n{"prompt": "w1", \n',
        "rows.jsonl:2: not a JSON object (Expecting property name enclosed in double quotes): ",
    ),
    "a long line that is no JSON": (
        b'{"prompt": "' + b"w1 " * 300 + b"\n",
        "rows.jsonl:1: not a JSON object (Unterminated string starting at): '"
        f"{('{' + chr(34) + 'prompt' + chr(34) + ': ' + chr(34) + 'w1 ' * 30)[:80]}'",
    ),
    "bytes that are not UTF-8": (
        b'{"prompt": "w1", "response": "w2"}\n{"prompt": "w1", "response": "\xff"}\n',
        "rows.jsonl:2:31: byte 0xff is not UTF-8",
    ),
    "no rows": (b"", "rows.jsonl: has no rows"),
    "empty lines": (b"\n\n", "rows.jsonl: has no rows"),
    "lines of lists": (
        b'["w1", "w2"]\n["w1", "w2"]\n',
        "rows.jsonl:1: expected a JSON object, got",
    ),
    "neither prompt nor response": (
        [{"question": "w1", "answer": "w2"}],
        "row 0: has the keys 'answer', 'question'; expected exactly prompt and response",
    ),
    "messages beside a prompt": (
        [{"prompt": "w1", "response": "w2", "messages": [USER, ANSWER]}],
        "row 0: has the keys 'messages', 'prompt', 'response'; expected exactly",
    ),
    "a prompt that is a number": (
        [{"prompt": 3, "response": "w2"}],
        "row 0: prompt must be a text, got int",
    ),
    "a message that is a number": (
        [{"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": 4}]}],
        "row 0: messages[0] has a content of int",
    ),
    "an unknown role": (
        [{"messages": [{"role": "bot", "content": "w1"}, ANSWER]}],
        "row 0: messages[0] has the role 'bot'; expected one of user, assistant, system, tool",
    ),
    "a chat without an answer at its end": (
        [{"messages": [USER, ANSWER, USER]}],
        "row 0: the last message must be assistant's, not user's",
    ),
    "two messages of one role in a row": (
        [{"messages": [USER, USER, ANSWER]}],
        "row 0: messages[1] has the same role as the one before, 'user'; join them",
    ),
    "no answer in any row": (
        [{"prompt": "w1", "response": ""}] * 8,
        "no example is left to train on: ",
    ),
    "prompts that leave no room for an answer": (
        [{"prompt": "w1 " * 40, "response": "w2"}] * 8,
        "8 of 8 have nothing to learn within 16 tokens; raise max_seq_len",
    ),
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("case", ROWS)
def test_what_is_wrong_with_examples_is_found_before_the_first_step(case, foundry, material, alone):
    rows, message = ROWS[case]
    done = foundry("train", material.finetune(rows))
    assert (done.code, len(done.lines)) == (2, 1)
    assert message in done.err
    assert str(material.folder / "rows.jsonl") in done.err
    assert alone == []


@pytest.mark.slow
def test_one_row_without_an_answer_is_counted_and_left_out(foundry, material, caplog):
    rows = [*material.examples(8), {"prompt": "w1", "response": ""}]
    done = foundry("train", material.finetune(rows), "max_duration=2ba")
    assert done.code == 0, done.err
    assert "1 of 9 examples are left out: an empty prompt or response" in caplog.text


@pytest.mark.slow
def test_a_json_array_of_examples_is_read_as_its_rows(foundry, material):
    path = material.finetune(json.dumps(material.examples(8), indent=1))
    done = foundry("train", path, "max_duration=2ba")
    assert done.code == 0, done.err


# ---- what only the tokenizer shows


def _card(material: Material, **values: object) -> list[str]:
    known = {"kind": "tokens", "split": "", "samples": 12, "documents": 1, "shards": {}}
    DataCard(**{**known, **values}).write(material.folder / "data")
    return []


def _few(material: Material) -> list[str]:
    material.tokens("few", 2)
    return ["train_loader.dataset.local=few"]


def _texts(material: Material) -> list[str]:
    material.texts("texts", *[{"text": "w1 w2"}] * 8)
    return ["train_loader.dataset.local=texts"]


OF_TOKENIZER: dict[str, tuple[Spoil, str]] = {
    "data of another tokenizer": (
        lambda material: _card(material, tokenizer="acme/words", tokenizer_sha256="ab" * 32),
        f"was made with the tokenizer 'acme/words' (sha256 {'ab' * 32}), but the run's is ",
    ),
    "data of another length": (
        lambda material: _card(material, sequence_length=2048),
        "was made with --concat-tokens 2048, but max_seq_len is 16",
    ),
    "less than one global batch": (
        _few,
        "the data has 2 samples an epoch, less than one global batch of 4, and drop_last: true",
    ),
    "texts to be padded without a padding token": (
        _texts,
        "the tokenizer has no padding token; choose one: tokenizer.kwargs.pad_token: '<eos>'",
    ),
    "another end of documents than the tokenizer's": (
        lambda _: ["train_loader.dataset.eos_token_id=3"],
        "dataset.eos_token_id is 3, but the tokenizer's is 63; correct it",
    ),
    "no such tokenizer": (
        lambda _: ["tokenizer.name=./nothing"],
        "tokenizer.name: there is no folder './nothing'",
    ),
    "a tokenizer of the hub, without network": (
        lambda _: ["tokenizer.name=acme/words"],
        "'acme/words'",
    ),
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("case", OF_TOKENIZER)
def test_what_does_not_fit_the_tokenizer_is_found_before_the_first_step(
    case, foundry, material, alone
):
    spoil, message = OF_TOKENIZER[case]
    done = foundry("train", material.pretrain(), *spoil(material))
    assert (done.code, len(done.lines)) == (2, 1)
    assert message in done.err
    assert alone == []


def test_a_token_that_is_not_in_the_vocabulary_names_its_sample(foundry, material):
    material.tokens("data", 12, highest=70)
    done = foundry("train", material.pretrain())
    assert (done.code, len(done.lines)) == (2, 1)
    assert "sample 11: token id 70 is not in the tokenizer's vocabulary of 64" in done.err
