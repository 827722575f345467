"""Ids made quickly, against those of the plain call."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from foundry_sdk.data.finetuning.texts import TextEncoder, plain_ids

PIECES = [
    *("the cat", " sat", "  ", "\n\n", "\t", "don't", "I'LL", "1234567", "x1y2", "_a__b", "!?..."),
    *("é", "e\u0301", "漢字", "🙂👩\u200d👧", "naïve", "ﬁ", "—", "\u00a0", " \u200b "),
    *("\r\n", "<eos>", "<bos>", " <pad> "),
]
CALLS = [(special, target) for special in (True, False) for target in (True, False)]


def texts(count, seed=1):
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(PIECES, draw.integers(40))) for _ in range(count)]


def wrapped(tokenizer, cls=PreTrainedTokenizerFast):
    return cls(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", bos_token="<bos>")


def trained(kind):
    special = {"special_tokens": ["<eos>", "<pad>", "<bos>", "<unk>"], "show_progress": False}
    if kind == "words":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=300, **special)
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", **special)
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, **special)
    made.train_from_iterator(texts(200, seed=2), trainer)
    if kind == "marked":
        made.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 0)]
        )
    return wrapped(made)


@pytest.mark.parametrize("kind", ["bytes", "marked", "words", "unigram"])
def test_ids_are_those_of_the_plain_call(kind):
    tokenizer = trained(kind)
    encode = TextEncoder(tokenizer)
    assert set(encode._quick) == set(CALLS)  # none of them went the long way
    given = texts(300)
    for special, target in CALLS:
        expected = plain_ids(tokenizer, given, special_tokens=special, target=target)
        found = encode(given, special_tokens=special, target=target)
        assert all(map(np.array_equal, found, expected))
        assert {ids.dtype for ids in found} == {np.dtype(np.int32)}
    assert len({len(encode([""], special_tokens=special)[0]) for special in (True, False)}) == (
        2 if kind == "marked" else 1
    )


def test_padding_and_truncation_of_the_file_are_not_used():
    inner = trained("marked").backend_tokenizer
    inner.enable_padding(length=64)
    inner.enable_truncation(8)
    tokenizer, given = wrapped(inner), texts(40)
    encode = TextEncoder(tokenizer)
    assert set(encode._quick) == set(CALLS)
    expected = plain_ids(trained("marked"), given, special_tokens=True, target=False)
    assert all(map(np.array_equal, encode(given), expected))


def test_dolly_with_neox(neox, dolly):
    given = [row[key] for row in dolly[0][:200] for key in ("prompt", "response")]
    encode = TextEncoder(neox)
    expected = [np.array(ids) for ids in neox(given)["input_ids"]]
    assert encode._quick
    assert all(map(np.array_equal, encode(given), expected))


class Reversed(PreTrainedTokenizerFast):
    """A tokenizer that does more than its Rust part."""

    def __call__(self, *args, **options):
        found = super().__call__(*args, **options)
        found["input_ids"] = [ids[::-1] for ids in found["input_ids"]]
        return found


class Late(Reversed):
    """The same, but only with texts that no probe is like."""

    def __call__(self, *args, **options):
        (given,) = [options[key] for key in ("text", "text_target") if key in options]
        return (super() if "cat cat" in given[0] else super(Reversed, self)).__call__(
            *args, **options
        )


@pytest.mark.parametrize("cls", [Reversed, Late])
def test_a_tokenizer_with_a_mind_of_its_own_is_called_itself(cls):
    tokenizer = wrapped(trained("bytes").backend_tokenizer, cls)
    given = ["the cat cat sat", *texts(20)]
    found = TextEncoder(tokenizer)(given)
    expected = [np.array(ids) for ids in tokenizer(text=given)["input_ids"]]
    assert all(map(np.array_equal, found, expected))
    plain = trained("bytes")(given)["input_ids"]
    assert found[0].tolist() == plain[0][::-1] != plain[0]
