"""Where a long document may be cut so that its ids stay those of the whole document.

A tokenizer first splits text into words (pre-tokens) and then makes ids of each word alone. A
cut where the words end anyway changes nothing. For the splitting rules of byte-level BPE
(GPT-2, GPT-NeoX, Llama 3, Qwen, GPT-4) a letter followed by a space or a newline is such a place:
none of their patterns goes on from a letter into whitespace, and none looks back. Unicode
normalization keeps it too, since nothing composes with a following space. Other
tokenizers that make ids word by word, or whose vocabulary has no entry in which whitespace
follows a letter, have each cut tried out on the text around it. For the rest (a Unigram model over
the whole text) nothing is promised, and every cut is counted as inexact.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal

import attrs

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Texts → ids of each, without the special tokens of a whole document."""

Guarantee = Literal["proven", "checked", "none"]
"""What is known of a tokenizer: cuts are right by its definition, if tried out, or perhaps."""

_CANDIDATE: Final = re.compile(r"(?<=[^\W\d_])[ \n](?=\S)")
_WINDOW: Final = 512
_ATTEMPTS: Final = 32
_SEARCH: Final = 4
LOOK_AHEAD: Final = _SEARCH + 1
"""Lengths of a piece that a text must reach beyond its start, unless it ends before."""

_CONTEXT_FREE_NORMALIZERS: Final = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase"})
_CONTEXT_FREE_SPLITS: Final = frozenset({"Digits", "Punctuation"})
_WORD_SPLITS: Final = frozenset({"Whitespace", "WhitespaceSplit", "BertPreTokenizer"})
_CROSSING_ENTRY: Final = re.compile(r"[^\W\d_][▁ĠĊ\s]")
GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4: Final = (  # Llama 3, too
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2: Final = GPT4.replace("{1,3}", "")
_LETTERS_END_AT_WHITESPACE: Final = frozenset({GPT2, GPT4, QWEN2})


@attrs.frozen(kw_only=True)
class Cut:
    """An end of a piece.

    Attributes:
        end: index of the first character after the piece.
        exact: the ids of both sides are those of the text in one piece.
    """

    end: int
    exact: bool = True


class Splitter:
    """Cuts documents for one tokenizer.

    The cuts depend on the text and the tokenizer only, never on who asks.
    """

    def __init__(self, encode: Encode, guarantee: Guarantee) -> None:
        self.guarantee = guarantee
        self._encode = encode

    def cut(self, text: str, start: int, length: int) -> Cut | None:
        """Return where the piece from ``start`` ends, soon after ``length`` characters.

        None: the rest of the text is one piece. The text must reach ``LOOK_AHEAD * length`` beyond
        ``start``, unless it ends before.
        """
        target, limit = start + length, start + _SEARCH * length
        if len(text) <= target + length // 4:
            return None
        first: int | None = None
        for attempt, match in enumerate(_CANDIDATE.finditer(text, target, limit)):
            position = match.start()
            if self.guarantee == "proven":
                return Cut(end=position)
            if self.guarantee == "checked" and self._same_ids(text, position):
                return Cut(end=position)
            first = position if first is None else first
            if attempt == _ATTEMPTS or self.guarantee == "none":
                break
        if first is None and len(text) <= limit:
            return None
        return Cut(end=first or limit, exact=False)

    def pieces(self, text: str, length: int) -> Iterator[str]:
        """Yield the text in pieces of about ``length`` characters, as long as they are exact."""
        start = 0
        while (cut := self.cut(text, start, length)) is not None and cut.exact:
            yield text[start : cut.end]
            start = cut.end
        yield text[start:] if start else text

    def _same_ids(self, text: str, position: int) -> bool:
        left = text[max(0, position - _WINDOW) : position]
        right = text[position : position + _WINDOW]
        both, first, second = self._encode([left + right, left, right])
        return both == first + second


def guarantee_of(tokenizer_json: str) -> Guarantee:
    """Tell what a tokenizer's definition says of cuts between a letter and whitespace."""
    content: dict[str, Any] = json.loads(tokenizer_json)
    model = content["model"]
    if model.get("dropout"):
        return "none"
    words = _steps(content.get("pre_tokenizer"), "pretokenizers")
    if (
        all(
            step["type"] in _CONTEXT_FREE_NORMALIZERS
            for step in _steps(content.get("normalizer"), "normalizers")
        )
        and _ends_words_after_letters(words)
        and not any(_crosses(token) for token in content.get("added_tokens") or ())
    ):
        return "proven"
    if any(_makes_words(step) for step in words):
        return "checked"
    is_closed = model["type"] == "BPE" and not any(map(_CROSSING_ENTRY.search, model["vocab"]))
    return "checked" if is_closed else "none"


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[key] for step in _steps(inner, key)]
    return [part]


def _makes_words(step: dict[str, Any]) -> bool:
    """Tell whether a pre-tokenizer splits at whitespace at all."""
    if step["type"] == "Metaspace":
        return bool(step.get("split", True))
    if step["type"] == "ByteLevel":
        return bool(step.get("use_regex", True))
    return step["type"] in _WORD_SPLITS


def _ends_words_after_letters(steps: list[dict[str, Any]]) -> bool:
    ends = False
    for step in steps:
        if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
            ends = ends or bool(step.get("use_regex", True))
        elif step["type"] == "Split" and step["pattern"].get("Regex") in _LETTERS_END_AT_WHITESPACE:
            ends = ends or (step.get("behavior") == "Isolated" and not step.get("invert"))
        elif step["type"] not in _CONTEXT_FREE_SPLITS:
            return False
    return ends


def _crosses(token: dict[str, Any]) -> bool:
    """Tell whether an added token may hold a letter and the whitespace after it."""
    content: str = token["content"]
    takes_whitespace_after = bool(token.get("rstrip")) and content[-1:].isalnum()
    return takes_whitespace_after or re.search(r"[^\W\d_]\s", content) is not None
