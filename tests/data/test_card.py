"""The data card: written whole, read strictly."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from foundry_sdk.data.card import CARD_NAME, DataCard, SourceFile
from foundry_sdk.errors import DataError


@pytest.fixture
def card() -> DataCard:
    return DataCard(
        kind="tokens",
        split="train",
        samples=3,
        documents=2,
        tokens=24,
        dropped_tokens=5,
        sequence_length=8,
        tokenizer="gpt2",
        eos_text="<é>",
        eos_ids=(1, 2),
        sources=(SourceFile(path="a.jsonl", bytes=10, sha256="0" * 64),),
        shards={"shard.00000.mds": "f" * 64},
        options={"max_samples": None},
        versions={"tokenizers": "1"},
    )


def test_what_is_written_is_read(card: DataCard, tmp_path: Path) -> None:
    path = card.write(tmp_path)
    assert path == tmp_path / CARD_NAME
    assert [item.name for item in tmp_path.iterdir()] == [CARD_NAME]
    assert DataCard.read(tmp_path) == card
    assert card.digest() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder_without_a_card(tmp_path: Path) -> None:
    assert DataCard.read(tmp_path) is None


def test_the_summary_has_the_numbers(card: DataCard) -> None:
    assert card.summary("out/train") == (
        "out/train: 2 documents, 3 rows, 24 tokens of gpt2, 5 tokens dropped, in 1 shards"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2, this release reads 1"),
        ({"version": None}, "version None"),
        ({"colour": "red"}, r"unknown keys \['colour'\]"),
        ({"samples": "3"}, "samples: expected a count, got '3'"),
        ({"samples": -1}, "samples: expected a count, got -1"),
        ({"documents": True}, "documents: expected a count, got True"),
        ({"kind": "images"}, "kind: expected tokens, text or finetuning, got 'images'"),
        ({"sources": [{"name": "x"}]}, "not a data card"),
        ({"eos_ids": ["x"]}, "not a data card"),
        ({"shards": 7}, "not a data card"),
    ],
)
def test_a_card_that_is_not_one_is_refused(
    card: DataCard, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    values = json.loads(card.to_json())
    (tmp_path / CARD_NAME).write_text(json.dumps({**values, **change}))
    with pytest.raises(DataError, match=message) as caught:
        DataCard.read(tmp_path)
    assert str(tmp_path / CARD_NAME) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b'{"version": 1}'])
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CARD_NAME).write_bytes(content)
    with pytest.raises(DataError, match=r"card\.json"):
        DataCard.read(tmp_path)
