"""What is to be made of the documents, checked before anything is read."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import attrs

from foundry_sdk.data.contract import TokenizerSpec
from foundry_sdk.data.convert.encode import Errors, Vocabulary
from foundry_sdk.data.mds import SHARD_BYTES, TEXT_COLUMNS, TOKEN_COLUMNS, ShardLayout
from foundry_sdk.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Recipe:
    """The options that decide what is written, the same for every kind of input.

    Attributes:
        concat_tokens: ids a row; None = each document is a row of text.
        tokenizer, tokenizer_kwargs: as in ``TokenizerSpec``; needed with ``concat_tokens``.
        bos_text, eos_text: put before and after each document.
        wrap: let a document go on in the next row; False = throw the rest away.
        compression: see ``ShardLayout``.
        text_column: where a row of the input has its document.
        errors: what becomes of bytes that are not UTF-8.
        max_samples: rows at most; None = all.
        size_limit: bytes of a shard before compression.
    """

    concat_tokens: int | None = None
    tokenizer: str | None = None
    tokenizer_kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    bos_text: str = ""
    eos_text: str = ""
    wrap: bool = True
    compression: str | None = None
    text_column: str = "text"
    errors: Errors = "strict"
    max_samples: int | None = None
    size_limit: int = SHARD_BYTES

    def __attrs_post_init__(self) -> None:
        for name in ("concat_tokens", "max_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name}: got {value}, expected at least 1")
        if self.errors not in {"strict", "replace", "skip"}:
            raise DataError(f"errors: got {self.errors!r}, expected strict, replace or skip")
        if self.concat_tokens is not None and self.tokenizer is None:
            raise DataError(
                f"concat_tokens {self.concat_tokens} without a tokenizer; add --tokenizer NAME, or "
                "leave concat_tokens out to write text"
            )
        if self.concat_tokens is None:
            given = {
                "tokenizer": self.tokenizer is not None,
                "tokenizer_kwargs": bool(self.tokenizer_kwargs),
                "bos_text": bool(self.bos_text),
                "eos_text": bool(self.eos_text),
                "no_wrap": not self.wrap,
            }
            useless = [name for name, is_given in given.items() if is_given]
            if useless:
                raise DataError(
                    f"{', '.join(useless)} without concat_tokens: text is written as it is; add "
                    "--concat-tokens N to write tokens"
                )
        self.layout()

    def layout(self) -> ShardLayout:
        """Return how shards are written.

        Raises:
            DataError: the compression is unknown or the size impossible.
        """
        columns = TEXT_COLUMNS if self.concat_tokens is None else TOKEN_COLUMNS
        return ShardLayout(
            columns=columns, compression=self.compression, size_limit=self.size_limit
        )

    def with_own_eos(self) -> Self:
        """Return the recipe with the tokenizer's end-of-sequence token as ``eos_text``.

        Raises:
            DataError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise DataError("use_tokenizer_eos without a tokenizer; add --tokenizer NAME")
        from foundry_sdk.data.tokenizer import load_tokenizer

        spec = TokenizerSpec(name=self.tokenizer, kwargs=self.tokenizer_kwargs)
        return attrs.evolve(self, eos_text=str(load_tokenizer(spec).eos_token))


@attrs.frozen(kw_only=True)
class TokenizerFacts:
    """The tokenizer of a conversion, as workers and the card need it."""

    vocabulary: Vocabulary
    sha256: str
    vocab_size: int
    bos_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]


def tokenizer_facts(recipe: Recipe) -> TokenizerFacts | None:
    """Load the tokenizer of a recipe; None where text is written.

    Raises:
        DataError: it cannot be loaded, or nothing would separate the documents.
    """
    if recipe.tokenizer is None:
        return None
    from foundry_sdk.data.tokenizer import fingerprint, load_tokenizer

    spec = TokenizerSpec(name=recipe.tokenizer, kwargs=recipe.tokenizer_kwargs)
    tokenizer = load_tokenizer(spec)
    bos_ids = _ids(tokenizer, recipe.bos_text, add_special_tokens=False)
    eos_ids = _ids(tokenizer, recipe.eos_text, add_special_tokens=False)
    before, after = _special_ids(tokenizer, recipe.tokenizer)
    if not recipe.bos_text + recipe.eos_text:
        _require_separator(tokenizer, recipe.tokenizer)
    for name, ids in (("bos_text", bos_ids), ("eos_text", eos_ids)):
        if len(ids) > 1:
            _log.warning("%s becomes %d ids (%s); all are written", name, len(ids), list(ids))
    if (before or after) and (bos_ids or eos_ids):
        _log.warning(
            "the tokenizer itself puts %s around each document, besides bos_text and eos_text",
            tokenizer.convert_ids_to_tokens([*before, *after]),
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = Vocabulary(
        tokenizer_json=None if backend is None else backend.to_str(),
        name=recipe.tokenizer,
        kwargs=dict(recipe.tokenizer_kwargs),
        before=(*bos_ids, *before),
        after=(*after, *eos_ids),
    )
    return TokenizerFacts(
        vocabulary=vocabulary,
        sha256=fingerprint(tokenizer),
        vocab_size=len(tokenizer),
        bos_ids=bos_ids,
        eos_ids=eos_ids,
    )


def _ids(
    tokenizer: "PreTrainedTokenizerBase", text: str, *, add_special_tokens: bool
) -> tuple[int, ...]:
    options = {"truncation": False, "padding": False, "add_special_tokens": add_special_tokens}
    return tuple(tokenizer(text, **options)["input_ids"]) if text else ()


def _special_ids(
    tokenizer: "PreTrainedTokenizerBase", name: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the tokenizer puts before and after every text of its own accord."""
    probe = "The test"
    plain = _ids(tokenizer, probe, add_special_tokens=False)
    whole = _ids(tokenizer, probe, add_special_tokens=True)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    raise DataError(
        f"tokenizer {name!r}: its special tokens change the ids of the text itself ({plain} → "
        f"{whole}), so documents cannot be concatenated; use another tokenizer"
    )


def _require_separator(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    ids = _ids(tokenizer, "test", add_special_tokens=True)
    if ids[0] == tokenizer.bos_token_id or ids[-1] == tokenizer.eos_token_id:
        return
    raise DataError(
        f"tokenizer {name!r} marks neither begin nor end of a document, and bos_text and eos_text "
        "are empty: documents would run into each other; add --eos-text "
        f"{tokenizer.eos_token or tokenizer.bos_token!r}"
    )
