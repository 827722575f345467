r"""Ids of ASCII text by looking words up: several times as fast as tokenizing every word anew.

Byte-level BPE makes the ids of each word alone, and most words of a text were there before. Here
Python's regular expressions split the text into the words of the tokenizer's own pattern, which for
ASCII letters, digits and whitespace mean the same in both; each word that is not known yet is
given to the tokenizer. A word in a text is split off by the same alternative of the pattern as the
word alone: no alternative before it matches a beginning of it, and the only one that looks ahead,
``\s+(?!\S)``, takes a run of whitespace alone as a whole, too.
"""

import json
import re
from array import array
from typing import Any, Final, Self

from foundry_sdk.data.convert.split import GPT2, GPT4, QWEN2, Encode

_LIMIT: Final = 1 << 17
_LONGEST: Final = 64
_NORMALIZERS: Final = frozenset({"NFC", "NFD", "NFKC", "NFKD"})
_ASCII_CLASSES: Final = {r"\p{L}": "A-Za-z", r"\p{N}": "0-9"}


class WordIds(dict[str, bytes]):
    """Word → its ids as int32 bytes; unknown words are asked of the tokenizer."""

    def __init__(self, encode: Encode) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        ids = array("i", self._encode([word])[0]).tobytes()
        if len(word) <= _LONGEST:
            if len(self) >= _LIMIT:
                self.clear()
            self[word] = ids
        return ids


class WordEncoder:
    """Makes ids of ASCII text for one tokenizer."""

    def __init__(
        self, encode: Encode, *, words: re.Pattern[str], added: list[str], other: list[str]
    ) -> None:
        self._ids = WordIds(encode)
        self._words = words
        self._added = _any_of(added)
        self._other = _any_of(other)

    @classmethod
    def of(cls, tokenizer_json: str, encode: Encode) -> Self | None:
        """Return the encoder of a tokenizer; None where words cannot be looked up."""
        content: dict[str, Any] = json.loads(tokenizer_json)
        normalizer = content.get("normalizer")
        pattern = _pattern(content.get("pre_tokenizer"))
        if (
            content["model"]["type"] != "BPE"
            or content["model"].get("dropout")
            or (normalizer is not None and normalizer["type"] not in _NORMALIZERS)
            or pattern is None
        ):
            return None
        added: list[str] = []
        other: list[str] = []
        for token in content.get("added_tokens") or ():
            plain = token["normalized"] and not (
                token["lstrip"] or token["rstrip"] or token["single_word"]
            )
            (added if plain else other).append(token["content"])
        return cls(encode, words=re.compile(pattern, re.ASCII), added=added, other=other)

    def takes(self, text: str) -> bool:
        """Tell whether ``ids`` is right for a text: ASCII, and without special tokens."""
        return text.isascii() and (self._other is None or self._other.search(text) is None)

    def ids(self, text: str) -> bytes:
        """Return the ids of a text that it ``takes``, as int32 bytes."""
        get = self._ids.__getitem__
        find = self._words.findall
        if self._added is None:
            return b"".join(map(get, find(text)))
        parts = []
        for index, part in enumerate(self._added.split(text)):
            if index % 2:  # an added token, which the tokenizer cuts out before all else
                parts.append(get(part))
            elif part:
                parts.extend(map(get, find(part)))
        return b"".join(parts)


def _any_of(tokens: list[str]) -> re.Pattern[str] | None:
    """Return a pattern of the leftmost and then longest of some tokens."""
    found = sorted((token for token in tokens if token.isascii()), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, found))})") if found else None


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """Return the pattern of a byte-level pre-tokenizer, for ASCII; None for any other."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    *splits, last = steps
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if last.get("use_regex", True):
        pattern = None if splits else GPT2
    elif len(splits) == 1 and splits[0]["type"] == "Split":
        pattern = splits[0]["pattern"].get("Regex")
        if splits[0].get("behavior") != "Isolated" or splits[0].get("invert"):
            return None
    else:
        return None
    if pattern not in {GPT2, GPT4, QWEN2}:
        return None
    for unicode_class, ascii_class in _ASCII_CLASSES.items():
        parts = pattern.split(unicode_class)
        pattern = parts[0]
        for part in parts[1:]:
            # Inside of [...] the range alone, elsewhere a class of its own.
            is_inside = pattern.rfind("[") > pattern.rfind("]")
            pattern += (ascii_class if is_inside else f"[{ascii_class}]") + part
    return pattern
