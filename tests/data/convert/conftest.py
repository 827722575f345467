"""A small tokenizer and real text for conversions, and units small enough to need many."""

import hashlib
import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundry_sdk.data.convert import hub, jsonlines, run, textfiles, units

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SMALL_UNIT = 20_000


def stdlib_texts(count: int) -> list[str]:
    """Source code of Python's own library: real text that is everywhere."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))[:count]]


def save_byte_level_bpe(folder: Path, texts: list[str]) -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    wrapped.save_pretrained(folder)
    return str(folder)


class Trainer:
    """Trains tokenizers of the kinds that models are published with.

    Args:
        sample: what they are trained on.
    """

    def __init__(self, sample: list[str]) -> None:
        self.sample = sample

    def byte_level(self, pre_tokenizer: Any, normalizer: Any = None) -> "Tokenizer":
        """Return a BPE of bytes."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizer
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=1200,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>"],
            show_progress=False,
        )
        tokenizer.train_from_iterator(self.sample, trainer)
        return tokenizer

    def split_by(self, pattern: str, normalizer: Any = None) -> "Tokenizer":
        """Return a BPE of bytes whose words are those of a pattern."""
        from tokenizers import Regex, pre_tokenizers

        words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return self.byte_level(pre_tokenizers.Sequence([words, as_bytes]), normalizer)


@pytest.fixture(scope="session")
def trainer_on() -> type[Trainer]:
    """Return the class of trainers, to be called with a sample."""
    return Trainer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_byte_level_bpe(tmp_path_factory.mktemp("tokenizer"), stdlib_texts(12))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Some 25 documents, a third of a megabyte, one of them much longer than a unit."""
    parts = stdlib_texts(20)
    long = "\n".join(parts)[:150_000]
    exotic = "naïve café ﬁ Å 漢字 かな العربية हिन्दी 🙂👩‍👩‍👧\u0301 \x00 end\r\n" * 30
    return [*[part[:9_000] for part in parts[:9]], long, exotic, "x", " ", *parts[9:14]]


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hub, jsonlines, run, textfiles, units):
        monkeypatch.setattr(module, "UNIT", SMALL_UNIT)


@pytest.fixture
def write_lines() -> Callable[[Path, list[str]], Path]:
    def write(path: Path, texts: list[str]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"text": text, "id": number} for number, text in enumerate(texts)]
        dumped = [json.dumps(row, ensure_ascii=row["id"] == 3) for row in rows]
        path.write_text("".join(f"{line}\n" for line in dumped), encoding="utf-8", newline="")
        return path

    return write


@pytest.fixture
def lines(tmp_path: Path, texts: list[str], write_lines: Callable[[Path, list[str]], Path]) -> Path:
    return write_lines(tmp_path / "input" / "docs.jsonl", texts)


@pytest.fixture
def naive_rows() -> Callable[..., list[list[int]]]:
    """Concatenation as LLM Foundry does it: lists of ids, one call of the tokenizer a document."""

    def rows_of(
        texts: list[str],
        tokenizer: Any,
        length: int,
        *,
        bos: str = "",
        eos: str = "",
        wrap: bool = True,
    ) -> list[list[int]]:
        def ids(text: str, special: bool) -> list[int]:
            options = {"truncation": False, "padding": False, "add_special_tokens": special}
            return list(tokenizer(text, **options)["input_ids"])

        before, after = ids(bos, special=False), ids(eos, special=False)
        rows: list[list[int]] = []
        buffer: list[int] = []
        for text in texts:
            if not text:
                continue
            buffer = buffer + before + ids(text, special=True) + after
            while len(buffer) >= length:
                rows.append(buffer[:length])
                buffer = buffer[length:] if wrap else []
        return rows

    return rows_of


@pytest.fixture
def read_rows() -> Callable[..., list[Any]]:
    """Reading with mosaicml-streaming itself."""

    def read(folder: Path, column: str = "tokens") -> list[Any]:
        from foundry_sdk.data.mds import import_streaming

        dataset = import_streaming().StreamingDataset(
            local=str(folder), shuffle=False, batch_size=1
        )
        rows = [dataset[index][column] for index in range(len(dataset))]
        return [row.tolist() for row in rows] if column == "tokens" else rows

    return read


@pytest.fixture
def digests() -> Callable[[Path], dict[str, str]]:
    def digest_all(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return digest_all
