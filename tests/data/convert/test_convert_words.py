"""Ids of looked-up words are those of the tokenizer, for any ASCII text."""

import functools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
)

from foundry_sdk.data.convert.encode import UnitEncoder, Vocabulary, rust_encoder
from foundry_sdk.data.convert.split import GPT4, QWEN2
from foundry_sdk.data.convert.words import WordEncoder

SAMPLE = [Path(module.__file__).read_text("utf-8") for module in (json, random, pytest)]


def with_spaces(tokenizer: Tokenizer) -> Tokenizer:
    """Add what GPT-NeoX adds: runs of spaces."""
    tokenizer.add_tokens([" " * count for count in range(24, 1, -1)])
    return tokenizer


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    """Add tokens that overlap words and each other, too."""
    with_spaces(tokenizer)
    tokenizer.add_tokens(["ab", "abz", "'s ", "\n\n"])
    tokenizer.add_tokens([AddedToken("<z>", normalized=False), AddedToken("<s>", lstrip=True)])
    tokenizer.add_special_tokens(["<|z|>"])
    return tokenizer


def gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


MAKE: dict[str, Callable[[Any], Tokenizer]] = {
    "gpt2": lambda train: train.byte_level(gpt2()),
    "gpt-neox": lambda train: with_spaces(train.byte_level(gpt2(), normalizers.NFC())),
    "gpt-neox added": lambda train: with_added(train.byte_level(gpt2(), normalizers.NFC())),
    "llama3": lambda train: train.split_by(GPT4),
    "llama3 added": lambda train: with_added(train.split_by(GPT4)),
    "qwen2": lambda train: with_added(train.split_by(QWEN2, normalizers.NFC())),
}
EncoderOf = Callable[[str], tuple[Tokenizer, WordEncoder]]


@pytest.fixture(scope="module")
def encoder_of(trainer_on: Any) -> EncoderOf:
    """Return a function that makes a tokenizer of ``MAKE`` and its word encoder, once."""
    train = trainer_on(SAMPLE)

    @functools.cache
    def make(name: str) -> tuple[Tokenizer, WordEncoder]:
        tokenizer = MAKE[name](train)
        serialized = tokenizer.to_str()
        words = WordEncoder.of(serialized, rust_encoder(serialized))
        assert words is not None
        return tokenizer, words

    return make


def ids_of(words: WordEncoder, text: str) -> list[int]:
    return memoryview(words.ids(text)).cast("i").tolist()


ASCII = st.text(st.characters(max_codepoint=127), max_size=200)
TRICKY = st.lists(
    st.sampled_from(
        [
            *" \n\t\r\x0b\x0c\x1c\x1f\x85'abzstdmlvre019.,-_<>|ABZS\x00\x7f",
            *["  ", "   ", "\n\n", "\r\n", "'s", "'S", "'ll", "ab", "abz", "<z>", "<s>", "<|z|>"],
        ]
    ),
    max_size=120,
).map("".join)


@pytest.mark.parametrize("name", sorted(MAKE))
@settings(deadline=None, max_examples=400)
@given(text=ASCII | TRICKY)
def test_ids_are_those_of_the_tokenizer(encoder_of: EncoderOf, name: str, text: str) -> None:
    tokenizer, words = encoder_of(name)
    if words.takes(text):
        assert ids_of(words, text) == tokenizer.encode(text).ids
    else:
        assert not text.isascii() or any(token in text for token in ("<|", "<s>", "<z>"))


@pytest.mark.parametrize("name", sorted(MAKE))
def test_real_text(encoder_of: EncoderOf, name: str) -> None:
    tokenizer, words = encoder_of(name)
    for text in SAMPLE:
        part = text.encode("ascii", "ignore").decode()
        assert words.takes(part)
        assert ids_of(words, part) == tokenizer.encode(part).ids


MIXED = st.lists(TRICKY | st.text(max_size=30) | st.just("naïve café 漢字 🙂 words and words "))


@pytest.mark.parametrize("name", sorted(MAKE))
@settings(deadline=None, max_examples=100)
@given(texts=st.lists(MIXED.map("".join).filter(bool), max_size=5))
def test_a_unit_of_mixed_texts(encoder_of: EncoderOf, name: str, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    tokenizer, _ = encoder_of(name)
    vocabulary = Vocabulary(tokenizer_json=tokenizer.to_str(), name=name, before=(7, 8), after=(9,))
    encoded = UnitEncoder(vocabulary, column="text", errors="strict").texts(texts)
    expected = [[7, 8, *tokenizer.encode(text).ids, 9] for text in texts]
    assert memoryview(encoded.data).cast("i").tolist() == [x for ids in expected for x in ids]
    assert encoded.lengths.tolist() == [len(ids) for ids in expected]


def test_the_memory_of_words_is_bounded(
    encoder_of: EncoderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foundry_sdk.data.convert.words._LIMIT", 50)
    tokenizer, _ = encoder_of("gpt2")
    words = WordEncoder.of(tokenizer.to_str(), rust_encoder(tokenizer.to_str()))
    assert words is not None
    for number in range(300):
        text = f"w{number}x and " + "y" * 100 * (number % 7)
        assert ids_of(words, text) == tokenizer.encode(text).ids
        assert len(words._ids) <= 50
        assert max(map(len, words._ids)) <= 64


@pytest.mark.parametrize(
    "make",
    [
        lambda train: train.byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda train: train.byte_level(gpt2(), normalizers.Lowercase()),
        lambda train: train.byte_level(
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        ),
        lambda train: train.byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(), gpt2()])),
        lambda train: train.split_by(r"\p{L}+|\P{L}+"),
        lambda _: Tokenizer(models.WordPiece(unk_token="?")),
    ],
)
def test_other_tokenizers_are_left_to_themselves(
    trainer_on: Any, make: Callable[[Any], Tokenizer]
) -> None:
    serialized = make(trainer_on(SAMPLE)).to_str()
    assert WordEncoder.of(serialized, rust_encoder(serialized)) is None


def test_a_published_tokenizer_on_papers() -> None:
    data = os.environ.get("FOUNDRY_TEST_DATA")
    if data is None:
        pytest.skip("FOUNDRY_TEST_DATA names no folder with arxiv.jsonl and gpt-neox-20b")
    serialized = (Path(data) / "gpt-neox-20b" / "tokenizer.json").read_text("utf-8")
    tokenizer = Tokenizer.from_str(serialized)
    words = WordEncoder.of(serialized, rust_encoder(serialized))
    assert words is not None
    for line in (Path(data) / "arxiv.jsonl").read_text("utf-8").splitlines():
        text = json.loads(line)["text"].encode("ascii", "ignore").decode()
        assert ids_of(words, text) == tokenizer.encode(text).ids
