"""Cuts of long documents change no ids, for the tokenizers that are said to be safe."""

import functools
import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from foundry_sdk.data.convert.encode import rust_encoder
from foundry_sdk.data.convert.split import Guarantee, Splitter, guarantee_of

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = GPT4.replace("{1,3}", "")
SAMPLE = [
    Path(json.__file__).read_text("utf-8"),
    Path(random.__file__).read_text("utf-8"),
    "naïve café ﬁ Å 漢字 かな العربية 🙂 e\u0301 o\u0302\u0323 don't WON'T 1,234.5\r\n\t x\n\n\ny "
    * 40,
]


def with_spaces(tokenizer: Tokenizer) -> Tokenizer:
    """Add runs of spaces, as they are in tokenizers for code."""
    tokenizer.add_tokens(["    ", "  "])
    return tokenizer


def gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


PROVEN: dict[str, Callable[[Any], Tokenizer]] = {
    "gpt-neox": lambda train: train.byte_level(gpt2(), normalizers.NFC()),
    "gpt2": lambda train: train.byte_level(gpt2()),
    "llama3": lambda train: train.split_by(GPT4),
    "qwen2": lambda train: train.split_by(QWEN, normalizers.NFKC()),
    "digits": lambda train: train.byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), gpt2()])
    ),
}
SplitterOf = Callable[[str], tuple[Splitter, Tokenizer]]


@pytest.fixture(scope="module")
def splitter_of(trainer_on: Any) -> SplitterOf:
    """Return a function that makes a tokenizer of ``PROVEN`` and its splitter, once."""
    train = trainer_on(SAMPLE)

    @functools.cache
    def make(name: str) -> tuple[Splitter, Tokenizer]:
        tokenizer = with_spaces(PROVEN[name](train))
        serialized = tokenizer.to_str()
        return Splitter(rust_encoder(serialized), guarantee_of(serialized)), tokenizer

    return make


TEXTS = st.text(
    st.sampled_from("abzAZ éÀﬁ\u0301\u0323漢🙂 \n\t\r\u00a0\u3000  ''srt.,;(_-0129½²<|>")
    | st.characters(exclude_categories=["Cs"]),
    min_size=20,
    max_size=400,
)


@pytest.mark.parametrize("name", sorted(PROVEN))
@settings(deadline=None, max_examples=150)
@given(text=TEXTS, length=st.integers(1, 30))
def test_pieces_have_the_ids_of_the_whole(
    splitter_of: SplitterOf, name: str, text: str, length: int
) -> None:
    splitter, tokenizer = splitter_of(name)
    assert splitter.guarantee == "proven"
    pieces = list(splitter.pieces(text, length))
    assert "".join(pieces) == text
    ids = [index for piece in pieces for index in tokenizer.encode(piece).ids]
    assert ids == tokenizer.encode(text).ids


@pytest.mark.parametrize("name", sorted(PROVEN))
@pytest.mark.parametrize("length", [256, 1000])
def test_real_text_is_cut_often_and_without_loss(
    splitter_of: SplitterOf, name: str, length: int
) -> None:
    splitter, tokenizer = splitter_of(name)
    for text in SAMPLE:
        pieces = list(splitter.pieces(text, length))
        assert len(pieces) > len(text) // length // 4
        ids = [index for piece in pieces for index in tokenizer.encode(piece).ids]
        assert ids == tokenizer.encode(text).ids


def test_a_cut_depends_on_the_text_behind_its_start_only(splitter_of: SplitterOf) -> None:
    splitter, _ = splitter_of("gpt2")
    text = SAMPLE[0]
    ends = [0]
    while (cut := splitter.cut(text, ends[-1], 300)) is not None:
        ends.append(cut.end)
    for begin, end in pairwise(ends):
        again = splitter.cut(text[begin : begin + 5 * 300], 0, 300)
        assert again is not None
        assert begin + again.end == end


def unigram(**metaspace: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**metaspace)
    trainer = trainers.UnigramTrainer(
        vocab_size=800, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


def no_pre_tokenizer() -> Tokenizer:
    """Like Llama 2: spaces become a letter, and words are not split before merging."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in SAMPLE], trainer)
    return Tokenizer.from_str(json.dumps({**json.loads(tokenizer.to_str()), "pre_tokenizer": None}))


@pytest.mark.parametrize(
    ("guarantee", "make"),
    [
        ("checked", lambda _: unigram()),
        ("none", lambda _: unigram(prepend_scheme="first", split=False)),
        ("checked", lambda _: no_pre_tokenizer()),
        (
            "checked",
            lambda train: train.byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        ),
        ("none", lambda train: train.byte_level(pre_tokenizers.ByteLevel(use_regex=False))),
    ],
)
def test_other_tokenizers_are_tried_out_at_each_cut(
    trainer_on: Any, guarantee: Guarantee, make: Callable[[Any], Tokenizer]
) -> None:
    tokenizer = make(trainer_on(SAMPLE))
    serialized = tokenizer.to_str()
    assert guarantee_of(serialized) == guarantee
    splitter = Splitter(rust_encoder(serialized), guarantee)
    exact_texts = 0
    for text in SAMPLE:
        ends, all_exact = [0], True
        while (cut := splitter.cut(text, ends[-1], 700)) is not None:
            ends.append(cut.end)
            all_exact = all_exact and cut.exact
        pieces = [text[begin:end] for begin, end in pairwise([*ends, len(text)])]
        ids = [index for piece in pieces for index in tokenizer.encode(piece).ids]
        if all_exact:
            exact_texts += 1
            assert ids == tokenizer.encode(text).ids
    assert guarantee == "checked" or not exact_texts


def test_a_tokenizer_whose_own_tokens_cross_a_cut_is_not_proven(trainer_on: Any) -> None:
    tokenizer = trainer_on(SAMPLE).byte_level(gpt2())
    assert guarantee_of(tokenizer.to_str()) == "proven"
    for content, options in {"end of": {}, "stop": {"rstrip": True}}.items():
        from tokenizers import AddedToken

        changed = Tokenizer.from_str(tokenizer.to_str())
        changed.add_tokens([AddedToken(content, **options)])
        assert guarantee_of(changed.to_str()) == "checked"
    dropout = json.loads(tokenizer.to_str())
    dropout["model"]["dropout"] = 0.1
    assert guarantee_of(json.dumps(dropout)) == "none"
