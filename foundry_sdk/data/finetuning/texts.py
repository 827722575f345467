"""Ids of texts, exactly as the tokenizer makes them, without the rest that it makes of a text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from foundry_sdk.data.convert.encode import UnitEncoder, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int32]

_PROBES: Final = (
    "",
    " ",
    "The test of 12,345 words.\n\n\tdon't  stop ",
    "naïve café ﬁ 漢字 🙂👩‍👩‍👧 e\u0301 don\u2019t",
)
_FIRST: Final = 32
"""Texts of the data that are made both ways before one is trusted."""


class TextEncoder:
    """Tokenizes many texts at once.

    A call of a transformers tokenizer also makes masks, offsets and lists of Python numbers. The
    Rust tokenizer under it is asked directly instead, and where words are tokenized one by one
    (byte-level BPE) those seen before are looked up. Both are used only where the ids equal those
    of the plain call: on fixed texts, on all special tokens, and on the first texts of the data.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._quick = _quick_encoders(tokenizer)
        self._unproven = _FIRST

    def __call__(
        self, texts: Sequence[str], *, special_tokens: bool = True, target: bool = False
    ) -> list[Ids]:
        """Return the ids of each text, int32 (tokens,).

        Args:
            texts: to tokenize, each for itself.
            special_tokens: put those around them that the tokenizer puts around a text.
            target: they are what a model shall write; some tokenizers mark that.
        """
        if not texts:
            return []
        if self._unproven and self._quick:
            self._prove(texts[: self._unproven], special_tokens=special_tokens, target=target)
        quick = self._quick.get((special_tokens, target))
        if quick is None:
            return plain_ids(self._tokenizer, texts, special_tokens=special_tokens, target=target)
        return _quick_ids(quick, texts)

    def _prove(self, texts: Sequence[str], *, special_tokens: bool, target: bool) -> None:
        quick = self._quick.get((special_tokens, target))
        given = {"special_tokens": special_tokens, "target": target}
        if quick is not None and not _equal(quick, self._tokenizer, texts, **given):
            self._quick = {}
        self._unproven -= len(texts)


def plain_ids(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    special_tokens: bool,
    target: bool,
) -> list[Ids]:
    """Return the ids of each text by a call of the tokenizer, int32 (tokens,)."""
    options: dict[str, Any] = {"padding": False, "truncation": False, "verbose": False}
    options["text_target" if target else "text"] = list(texts)
    found = tokenizer(**options, add_special_tokens=special_tokens)["input_ids"]
    return [np.asarray(ids, np.int32) for ids in found]


def _quick_encoders(tokenizer: "PreTrainedTokenizerBase") -> dict[tuple[bool, bool], UnitEncoder]:
    """Return what makes the same ids quickly, by (special tokens, target); as far as it does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "split_special_tokens", False):
        return {}
    probe = _PROBES[2]
    bare, whole = (
        plain_ids(tokenizer, [probe], special_tokens=each, target=False)[0].tolist()
        for each in (False, True)
    )
    place = next(
        (n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare), None
    )
    if place is None:  # special tokens change the text's own ids
        return {}
    around = (tuple(whole[:place]), tuple(whole[place + len(bare) :]))
    probes = [*_PROBES, *(f"a {token}b{token} c" for token in tokenizer.all_special_tokens)]
    serialized = backend.to_str()
    made: dict[tuple[tuple[int, ...], ...], UnitEncoder] = {}
    found = {}
    for special_tokens in (True, False):
        before, after = around if special_tokens else ((), ())
        if (before, after) not in made:  # most tokenizers put nothing around a text: one is both
            vocabulary = Vocabulary(tokenizer_json=serialized, name="", before=before, after=after)
            made[before, after] = UnitEncoder(vocabulary, column="", errors="strict")
        for target in (False, True):
            given = {"special_tokens": special_tokens, "target": target}
            if _equal(made[before, after], tokenizer, probes, **given):
                found[special_tokens, target] = made[before, after]
    return found


def _equal(
    quick: UnitEncoder,
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    special_tokens: bool,
    target: bool,
) -> bool:
    plain = plain_ids(tokenizer, texts, special_tokens=special_tokens, target=target)
    return all(map(np.array_equal, _quick_ids(quick, texts), plain))


def _quick_ids(quick: UnitEncoder, texts: Sequence[str]) -> list[Ids]:
    encoded = quick.texts(texts)
    ids = np.frombuffer(encoded.data, np.int32)
    return np.split(ids, np.cumsum(encoded.lengths)[:-1])
