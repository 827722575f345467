"""The data card: what a converted folder holds, beside its ``index.json``.

A loader reads it to refuse data of another tokenizer or sequence length, and ``inspect --verify``
to check every shard. It holds no time and no machine name, so that equal conversions are equal
byte for byte.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import attrs

from foundry_sdk.errors import DataError

CARD_NAME = "card.json"
CARD_VERSION = 1


@attrs.frozen(kw_only=True)
class SourceFile:
    """One input of a conversion.

    Attributes:
        path: file, or name of the dataset, as it was given.
        bytes: size; None where it is not known (a dataset of the hub).
        sha256: of the whole input; None where it was not read to its end, or is not a file.
        revision: commit of a dataset of the hub.
    """

    path: str
    bytes: int | None = None
    sha256: str | None = None
    revision: str | None = None


@attrs.frozen(kw_only=True)
class DataCard:
    """What one folder of MDS shards holds and what it was made of.

    Attributes:
        kind: "tokens": rows of ``sequence_length`` int32 ids in column ``tokens``;
            "text": one document a row in column ``text``; "finetuning": one example a row.
        split: name of the folder below the output root; "" for a folder without one.
        samples: rows written.
        documents: documents that are in the rows, wholly or in part.
        empty_documents: documents without a character, left out.
        skipped_documents: documents with bytes that are not UTF-8, left out (``errors="skip"``).
        replaced_documents: documents where such bytes became U+FFFD (``errors="replace"``).
        tokens: ids in all rows; None for "text".
        dropped_tokens: ids after the last whole row, and with ``wrap=False`` the rest of each
            document that filled a row; None for "text".
        sequence_length: ids a row; None for "text".
        tokenizer: name or path as given; None for "text".
        tokenizer_sha256: ``foundry_sdk.data.tokenizer.fingerprint`` of it.
        vocab_size: ``len(tokenizer)``; every id is below.
        bos_text, eos_text: put before and after each document.
        bos_ids, eos_ids: what they became.
        wrap: whether a document goes on in the next row.
        inexact_splits: cuts of long documents where the ids may differ from those of the
            document tokenized in one piece; 0 = the ids are exactly those.
        compression: as in the index: "zstd", "zstd:7", ...; None = none.
        sources: the inputs, in the order they were read.
        shards: name of each stored shard file → its sha256.
        options: what else was asked for (text column, treatment of errors, cut).
        conversion: sha256 over options, tokenizer and inputs: equal for equal conversions.
        versions: of the packages that decide the bytes.
    """

    kind: Literal["tokens", "text", "finetuning"]
    split: str
    samples: int
    documents: int
    empty_documents: int = 0
    skipped_documents: int = 0
    replaced_documents: int = 0
    tokens: int | None = None
    dropped_tokens: int | None = None
    sequence_length: int | None = None
    tokenizer: str | None = None
    tokenizer_sha256: str | None = None
    vocab_size: int | None = None
    bos_text: str = ""
    eos_text: str = ""
    bos_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()
    wrap: bool = True
    inexact_splits: int = 0
    compression: str | None = None
    sources: tuple[SourceFile, ...] = ()
    shards: Mapping[str, str] = attrs.field(factory=dict)
    options: Mapping[str, Any] = attrs.field(factory=dict)
    conversion: str = ""
    versions: Mapping[str, str] = attrs.field(factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> Self | None:
        """Return the card of ``folder``; None where there is none (data of another tool).

        Raises:
            DataError: there is one, but it cannot be read.
        """
        path = Path(folder) / CARD_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not a data card: not UTF-8 at byte {error.start}") from error
        try:
            values = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}: not a data card: not JSON ({error})") from error
        return cls._from_values(values, path)

    @classmethod
    def _from_values(cls, values: object, path: Path) -> Self:
        if not isinstance(values, dict):
            raise DataError(f"{path}: not a data card: expected an object")
        version = values.pop("version", None)
        if version != CARD_VERSION:
            raise DataError(
                f"{path}: data card of version {version!r}, this release reads {CARD_VERSION}"
            )
        fields = {field.name: field for field in attrs.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        needed = {name for name, field in fields.items() if field.default is attrs.NOTHING}
        missing = sorted(needed - set(values))
        if unknown or missing:
            raise DataError(f"{path}: data card with unknown keys {unknown}, without {missing}")
        for name in ("samples", "documents"):
            if type(values[name]) is not int or values[name] < 0:
                raise DataError(f"{path}: {name}: expected a count, got {values[name]!r}")
        if values["kind"] not in {"tokens", "text", "finetuning"}:
            known = "tokens, text or finetuning"
            raise DataError(f"{path}: kind: expected {known}, got {values['kind']!r}")
        try:
            values["sources"] = tuple(SourceFile(**item) for item in values.get("sources", ()))
            for name in ("bos_ids", "eos_ids"):
                values[name] = tuple(int(item) for item in values.get(name, ()))
            values["shards"] = {str(k): str(v) for k, v in dict(values.get("shards", {})).items()}
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: not a data card: {error}") from error
        return cls(**values)

    def write(self, folder: str | Path) -> Path:
        """Write the card into ``folder``, whole or not at all; return its path."""
        path = Path(folder) / CARD_NAME
        partial = path.with_name(f".{CARD_NAME}.partial")
        with partial.open("wb") as file:
            file.write(self.to_json())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return path

    def to_json(self) -> bytes:
        """Return the very bytes of the file."""
        values = {"version": CARD_VERSION, **attrs.asdict(self)}
        return json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"

    def digest(self) -> str:
        """Return the sha256 of the card's file: what a run's record keeps of its data."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def summary(self, place: str) -> str:
        """Return in a few words what lies at ``place``."""
        parts = [f"{self.documents:,} documents", f"{self.samples:,} rows"]
        if self.tokens is not None and self.kind == "tokens":
            parts.append(f"{self.tokens:,} tokens of {self.tokenizer}")
            parts.append(f"{self.dropped_tokens or 0:,} tokens dropped")
        left_out = {
            "empty": self.empty_documents,
            "skipped": self.skipped_documents,
            "repaired": self.replaced_documents,
        }
        parts += [f"{count:,} {name}" for name, count in left_out.items() if count]
        if self.inexact_splits:
            parts.append(f"{self.inexact_splits:,} cuts inside long documents may change ids there")
        return f"{place}: {', '.join(parts)}, in {len(self.shards):,} shards"
