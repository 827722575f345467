"""Concatenated rows: those of a naive implementation, and the same bytes for any workers."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from foundry_sdk.data import DataCard, convert_json, convert_text
from foundry_sdk.data.tokenizer import fingerprint

END = "<|endoftext|>"


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize(("bos", "eos"), [("", END), (END, ""), ("<s>", END)])
@pytest.mark.usefixtures("small_units")
def test_json_rows_equal_naive_concatenation(
    *,
    tmp_path: Path,
    lines: Path,
    texts: list[str],
    tokenizer_folder: str,
    wrap: bool,
    bos: str,
    eos: str,
    naive_rows: Any,
    read_rows: Any,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    expected = naive_rows(texts, tokenizer, 128, bos=bos, eos=eos, wrap=wrap)

    card = convert_json(
        path=lines,
        out_root=tmp_path / "out",
        concat_tokens=128,
        tokenizer=tokenizer_folder,
        bos_text=bos,
        eos_text=eos,
        no_wrap=not wrap,
        num_workers=2,
    )

    assert read_rows(tmp_path / "out" / "train") == expected
    assert len(expected) > (20 if wrap else 10)
    assert card == DataCard.read(tmp_path / "out" / "train")
    assert (card.samples, card.tokens) == (len(expected), len(expected) * 128)
    assert card.documents == len(texts)
    assert card.inexact_splits == 0
    all_ids = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    around = len(texts) * (len(card.bos_ids) + len(card.eos_ids))
    assert card.dropped_tokens == all_ids + around - card.tokens
    assert card.tokenizer_sha256 == fingerprint(tokenizer)


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.usefixtures("small_units")
def test_text_rows_equal_naive_concatenation(
    *,
    tmp_path: Path,
    texts: list[str],
    tokenizer_folder: str,
    wrap: bool,
    naive_rows: Any,
    read_rows: Any,
) -> None:
    for number, text in enumerate(texts):
        path = tmp_path / "input" / f"{number % 3}" / f"{number:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (tmp_path / "input" / "1" / "empty.txt").touch()
    (tmp_path / "input" / "notes.md").write_text("no text file")
    ordered = [texts[n] for third in range(3) for n in range(third, len(texts), 3)]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)

    card = convert_text(
        input_folder=tmp_path / "input",
        output_folder=tmp_path / "out",
        concat_tokens=200,
        tokenizer=tokenizer_folder,
        use_tokenizer_eos=True,
        no_wrap=not wrap,
        num_workers=2,
    )

    expected = naive_rows(ordered, tokenizer, 200, eos=END, wrap=wrap)
    assert read_rows(tmp_path / "out") == expected
    assert (card.eos_text, card.split, card.compression) == (END, "", "zstd")
    assert (card.documents, card.empty_documents) == (len(texts), 1)


@pytest.mark.parametrize("compression", [None, "zstd:7"])
@pytest.mark.usefixtures("small_units")
def test_any_number_of_workers_makes_the_same_bytes(
    tmp_path: Path, lines: Path, tokenizer_folder: str, digests: Any, compression: str | None
) -> None:
    results = []
    for workers in (1, 2, 3):
        convert_json(
            path=lines,
            out_root=tmp_path / str(workers),
            concat_tokens=64,
            tokenizer=tokenizer_folder,
            eos_text=END,
            compression=compression,
            size_limit=20_000,
            num_workers=workers,
        )
        results.append(digests(tmp_path / str(workers)))
    assert results[0] == results[1] == results[2]
    assert len(results[0]) > 10
    assert {Path(name).name for name in results[0]} >= {"index.json", "card.json"}


@pytest.mark.parametrize("limit", [1, 7, 100])
@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.usefixtures("small_units")
def test_max_samples_counts_rows_written(
    *,
    tmp_path: Path,
    lines: Path,
    texts: list[str],
    tokenizer_folder: str,
    limit: int,
    wrap: bool,
    naive_rows: Any,
    read_rows: Any,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    card = convert_json(
        path=lines,
        out_root=tmp_path / "out",
        concat_tokens=50,
        tokenizer=tokenizer_folder,
        eos_text=END,
        no_wrap=not wrap,
        max_samples=limit,
    )
    expected = naive_rows(texts, tokenizer, 50, eos=END, wrap=wrap)[:limit]
    assert read_rows(tmp_path / "out" / "train") == expected
    assert card.samples == len(expected)
    needed = next(
        count
        for count in range(1, len(texts) + 1)
        if len(naive_rows(texts[:count], tokenizer, 50, eos=END, wrap=wrap)) >= len(expected)
    )
    assert card.documents == needed


@pytest.mark.usefixtures("small_units")
def test_text_samples_are_the_documents(
    tmp_path: Path, texts: list[str], write_lines: Any, read_rows: Any
) -> None:
    source = write_lines(tmp_path / "docs.jsonl", ["", *texts, ""])
    card = convert_json(path=source, out_root=tmp_path / "out", split="val", size_limit=30_000)
    assert read_rows(tmp_path / "out" / "val", "text") == texts
    assert (card.kind, card.tokens, card.tokenizer) == ("text", None, None)
    assert (card.samples, card.empty_documents) == (len(texts), 2)
    assert len(card.shards) > 3


def test_several_files_are_read_in_sorted_order_packed_or_not(
    tmp_path: Path, write_lines: Any, read_rows: Any
) -> None:
    import gzip

    write_lines(tmp_path / "in" / "b.jsonl", ["b0", "b1"])
    plain = write_lines(tmp_path / "a", ["a0", "a1"])
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "in" / "c.json").write_bytes(b'\xef\xbb\xbf{"text": "c0"}\r\n\n{"text": "c1"}')
    for name, path in {"folder": tmp_path / "in", "glob": tmp_path / "in" / "*.js*"}.items():
        card = convert_json(path=path, out_root=tmp_path / name)
        assert read_rows(tmp_path / name / "train", "text") == ["a0", "a1", "b0", "b1", "c0", "c1"]
        assert [Path(source.path).name for source in card.sources] == [
            "a.jsonl.gz",
            "b.jsonl",
            "c.json",
        ]
        assert all(source.sha256 for source in card.sources)


@pytest.mark.usefixtures("small_units")
def test_special_tokens_of_the_tokenizer_surround_each_document(
    tmp_path: Path, lines: Path, texts: list[str], naive_rows: Any, read_rows: Any
) -> None:
    """As with BERT; its pre-tokenizer is unknown to the splitter, so cuts are tried out."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        cls_token="[CLS]",
        eos_token="[SEP]",
        unk_token="[UNK]",
    ).save_pretrained(tmp_path / "bert")

    card = convert_json(
        path=lines, out_root=tmp_path / "out", concat_tokens=60, tokenizer=str(tmp_path / "bert")
    )

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bert")
    assert tokenizer("a")["input_ids"][0] == 1
    assert read_rows(tmp_path / "out" / "train") == naive_rows(texts, tokenizer, 60)
    assert card.inexact_splits == 0


@pytest.mark.usefixtures("small_units")
def test_a_tokenizer_written_in_python(
    tmp_path: Path, lines: Path, texts: list[str], naive_rows: Any, read_rows: Any
) -> None:
    from transformers import ByT5Tokenizer

    make: Any = ByT5Tokenizer
    make().save_pretrained(tmp_path / "byt5")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "byt5")
    assert not tokenizer.is_fast
    card = convert_json(
        path=lines, out_root=tmp_path / "out", concat_tokens=90, tokenizer=str(tmp_path / "byt5")
    )
    rows = read_rows(tmp_path / "out" / "train")
    assert card.inexact_splits > 0  # nothing is known of it, so nothing is promised
    assert rows == naive_rows(texts, tokenizer, 90)  # it is one id a byte


def test_a_document_without_a_place_to_cut_is_reported(
    tmp_path: Path, tokenizer_folder: str, write_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foundry_sdk.data.convert import jsonlines, units

    monkeypatch.setattr(jsonlines, "UNIT", 1000)
    monkeypatch.setattr(units, "UNIT", 1000)
    source = write_lines(tmp_path / "docs.jsonl", ["z1x2" * 5000])
    card = convert_json(
        path=source,
        out_root=tmp_path / "out",
        concat_tokens=10,
        tokenizer=tokenizer_folder,
        eos_text=END,
    )
    assert card.inexact_splits > 0
    assert "may change ids" in card.summary("out")


def test_rows_of_real_papers_with_a_published_tokenizer(
    tmp_path: Path, naive_rows: Any, read_rows: Any
) -> None:
    import json

    data = os.environ.get("FOUNDRY_TEST_DATA")
    if data is None:
        pytest.skip("FOUNDRY_TEST_DATA names no folder with arxiv.jsonl and gpt-neox-20b")
    papers = Path(data) / "arxiv.jsonl"
    name = str(Path(data) / "gpt-neox-20b")
    card = convert_json(
        path=papers, out_root=tmp_path, concat_tokens=2048, tokenizer=name, eos_text=END
    )
    texts = [json.loads(line)["text"] for line in papers.read_text("utf-8").splitlines()]
    expected = naive_rows(texts, AutoTokenizer.from_pretrained(name), 2048, eos=END)
    rows = read_rows(tmp_path / "train")
    assert rows == expected
    assert np.max(rows) < (card.vocab_size or 0)
