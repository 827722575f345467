"""What a user gets for bad input, bad options and a folder that is not free."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from foundry_sdk.data import convert_hf, convert_json, convert_text
from foundry_sdk.errors import DataError, RunError

BAD_LINES = {
    "not json": (b'{"text": "a"}\n{"text": \n', r":2: not a JSON object .*'\{\"text\":'"),
    "long bad line": (b'{"text": "a"}\n' + b"x" * 500, r":2: not a JSON object .*'x{80}'$"),
    "array": (b'[{"text": "a"},\n{"text": "b"}]\n', r":1: a JSON array .*one object a line"),
    "array a line": (b'{"text": "a"}\n[1, 2]\n', r":2: a JSON array \('\[1, 2\]'\)"),
    "scalar": (b'"text"\n', r":1: expected a JSON object"),
    "no column": (
        b'{"txt": "a", "id": 1}\n',
        r":1: no column 'text', found id, txt; did you mean 'txt'",
    ),
    "number": (b'{"text": 7}\n', r":1: column 'text': expected a string, got int 7"),
    "null": (b'{"text": null}\n', r":1: column 'text': expected a string, got NoneType"),
    "not utf-8": (b'{"text": "a"}\n{"text": "\xff"}\n', r":2:11: byte 0xff is not UTF-8 .*replace"),
    "lone surrogate": (b'{"text": "\\ud800"}\n', r":1: lone surrogate U\+D800 at character 0"),
    "deep": (b"[" * 100_000 + b"\n", r":1: "),
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("tokens", [False, True])
def test_a_bad_line_is_named(
    name: str, tokens: bool, tmp_path: Path, tokenizer_folder: str
) -> None:
    content, message = BAD_LINES[name]
    path = tmp_path / "docs.jsonl"
    path.write_bytes(content)
    options: dict[str, Any] = {}
    if tokens:
        options = {"concat_tokens": 8, "tokenizer": tokenizer_folder, "eos_text": "<|endoftext|>"}
    with pytest.raises(DataError, match=message) as caught:
        convert_json(path=path, out_root=tmp_path / "out", **options)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out" / "train").exists()


@pytest.mark.usefixtures("small_units")
def test_a_bad_long_line_is_named(tmp_path: Path, tokenizer_folder: str) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 9 + b'{"text": "' + b"word " * 9_000 + b'\xfe"}\n')
    with pytest.raises(DataError, match=r"docs\.jsonl:10:45011: byte 0xfe is not UTF-8"):
        convert_json(
            path=path,
            out_root=tmp_path / "out",
            concat_tokens=8,
            tokenizer=tokenizer_folder,
            eos_text="x",
        )


def test_the_first_of_several_bad_lines_is_named_for_any_workers(
    tmp_path: Path, tokenizer_folder: str, small_units: None
) -> None:
    del small_units
    path = tmp_path / "docs.jsonl"
    good = json.dumps({"text": "some words " * 400}) + "\n"
    path.write_text(good * 20 + '{"a": 1}\n' + good * 20 + '{"b": 1}\n')
    for workers in (1, 3):
        with pytest.raises(DataError, match=r":21: no column 'text', found a"):
            convert_json(
                path=path,
                out_root=tmp_path / "out",
                concat_tokens=8,
                tokenizer=tokenizer_folder,
                eos_text="x",
                num_workers=workers,
                overwrite=True,
            )


def test_errors_replace_and_skip_are_counted(tmp_path: Path, read_rows: Any) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(
        b'{"text": "a"}\n{"text": "b\xff"}\n{"text": "c\\ud83d"}\n{"text": "\\ud83d\\ude42"}\n'
        b'{"text": ""}\n'
    )
    replaced = convert_json(path=path, out_root=tmp_path / "replace", errors="replace")
    assert read_rows(tmp_path / "replace" / "train", "text") == ["a", "b\ufffd", "c\ufffd", "🙂"]
    assert (replaced.replaced_documents, replaced.skipped_documents) == (2, 0)
    skipped = convert_json(path=path, out_root=tmp_path / "skip", errors="skip")
    assert read_rows(tmp_path / "skip" / "train", "text") == ["a", "🙂"]
    assert (skipped.replaced_documents, skipped.skipped_documents) == (0, 2)
    assert (skipped.documents, skipped.empty_documents) == (2, 1)


@pytest.mark.parametrize("size", [0, 3_000_000])
def test_text_that_is_not_utf8_is_named_replaced_or_skipped(
    size: int, tmp_path: Path, read_rows: Any
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfgood \x00 text\r\n")
    (folder / "b.txt").write_bytes(b"x\n" * (size // 2) + "é".encode() + b"\nab\xc3(\n")
    (folder / "c.txt").write_bytes("漢字".encode())
    line = size // 2 + 2
    with pytest.raises(DataError, match=rf"b\.txt:{line}:3: byte 0xc3 is not UTF-8"):
        convert_text(input_folder=folder, output_folder=tmp_path / "strict")
    card = convert_text(input_folder=folder, output_folder=tmp_path / "re", errors="replace")
    rows = read_rows(tmp_path / "re", "text")
    assert rows == ["good \x00 text\r\n", "x\n" * (size // 2) + "é\nab\ufffd(\n", "漢字"]
    assert card.replaced_documents == 1
    card = convert_text(input_folder=folder, output_folder=tmp_path / "skip", errors="skip")
    assert read_rows(tmp_path / "skip", "text") == ["good \x00 text\r\n", "漢字"]
    assert (card.documents, card.skipped_documents) == (2, 1)


def test_a_byte_sequence_over_the_edge_of_a_block_is_no_error(
    tmp_path: Path, read_rows: Any
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    text = "x" * ((1 << 20) - 1) + "é" + "y" * (1 << 20) + "🙂"
    (folder / "a.txt").write_bytes(text.encode())
    convert_text(input_folder=folder, output_folder=tmp_path / "out")
    assert read_rows(tmp_path / "out", "text") == [text]
    (folder / "a.txt").write_bytes(text.encode()[:-1])
    with pytest.raises(DataError, match=rf"a\.txt:1:{(2 << 20) + 2}: byte 0xf0 is not UTF-8"):
        convert_text(input_folder=folder, output_folder=tmp_path / "cut")


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no tokenizer": ({"concat_tokens": 8}, "concat_tokens 8 without a tokenizer.*--tokenizer"),
    "no length": ({"tokenizer": "x"}, "tokenizer without concat_tokens.*--concat-tokens"),
    "eos of text": ({"eos_text": "x"}, "eos_text without concat_tokens"),
    "wrap of text": ({"no_wrap": True}, "no_wrap without concat_tokens"),
    "zero": ({"concat_tokens": 0, "tokenizer": "x"}, "concat_tokens: got 0, expected at least 1"),
    "cut": ({"max_samples": -1}, "max_samples: got -1"),
    "workers": ({"num_workers": 0}, "num_workers: got 0, expected at least 1"),
    "compression": ({"compression": "zip"}, r"compression: unknown 'zip'; known are zstd\[:1-22\]"),
    "errors": ({"errors": "ignore"}, "errors: got 'ignore', expected strict, replace or skip"),
    "limit": ({"size_limit": 1 << 33}, "size_limit: got 8589934592"),
    "split": ({"split": "../x"}, r"split: '\.\./x' is no name of a folder"),
    "scheme": ({"out_root": "gs://b/x"}, "cannot write to gs://.*s3://"),
    "bucket": ({"out_root": "s3://"}, "names no bucket"),
    "tokenizer": (
        {"concat_tokens": 8, "tokenizer": "./nowhere", "eos_text": "x"},
        "no folder './nowhere'",
    ),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_a_bad_option_is_named_at_once(name: str, lines: Path, tmp_path: Path) -> None:
    options, message = BAD_OPTIONS[name]
    with pytest.raises(DataError, match=message):
        convert_json(**{"path": lines, "out_root": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_documents_that_nothing_would_separate(
    lines: Path, tmp_path: Path, tokenizer_folder: str
) -> None:
    with pytest.raises(DataError, match=r"run into each other; add --eos-text '<\|endoftext\|>'"):
        convert_json(
            path=lines, out_root=tmp_path / "out", concat_tokens=8, tokenizer=tokenizer_folder
        )


def test_a_separator_of_several_ids_is_reported(
    lines: Path, tmp_path: Path, tokenizer_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    convert_json(
        path=lines,
        out_root=tmp_path / "out",
        concat_tokens=8,
        tokenizer=tokenizer_folder,
        eos_text="</document>",
    )
    assert "eos_text becomes" in caplog.text


def test_less_than_one_row(tmp_path: Path, tokenizer_folder: str, write_lines: Any) -> None:
    source = write_lines(tmp_path / "docs.jsonl", ["few words", ""])
    with pytest.raises(DataError, match=r"1 documents, 1 empty\) has \d+ tokens, fewer than one"):
        convert_json(
            path=source,
            out_root=tmp_path / "out",
            concat_tokens=2048,
            tokenizer=tokenizer_folder,
            eos_text="<|endoftext|>",
        )
    assert not (tmp_path / "out" / "train").exists()
    nothing = write_lines(tmp_path / "empty.jsonl", ["", ""])
    with pytest.raises(DataError, match="nothing to write: the input has 0 documents, 2 empty"):
        convert_json(path=nothing, out_root=tmp_path / "text")


def test_missing_inputs(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "data.csv").touch()
    with pytest.raises(DataError, match=r"no file, folder or match of .*working directory"):
        convert_json(path=tmp_path / "nowhere.jsonl", out_root=tmp_path / "out")
    with pytest.raises(DataError, match=r"holds no \.jsonl.*found data\.csv"):
        convert_json(path=tmp_path / "folder", out_root=tmp_path / "out")
    with pytest.raises(DataError, match="there is no folder"):
        convert_text(input_folder=tmp_path / "nowhere", output_folder=tmp_path / "out")
    with pytest.raises(DataError, match=r"no file below .* ends with \.txt"):
        convert_text(input_folder=tmp_path / "folder", output_folder=tmp_path / "out")


def test_a_packed_file_that_is_cut_short(tmp_path: Path) -> None:
    import gzip

    packed = gzip.compress(b'{"text": "some words"}\n' * 5_000)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: not a whole gzip file"):
        convert_json(path=tmp_path / "a.jsonl.gz", out_root=tmp_path / "out")


def test_eos_given_twice(tmp_path: Path, tokenizer_folder: str) -> None:
    with pytest.raises(DataError, match="use_tokenizer_eos with eos_text"):
        convert_text(
            input_folder=tmp_path,
            output_folder=tmp_path / "out",
            concat_tokens=8,
            tokenizer=tokenizer_folder,
            eos_text="x",
            use_tokenizer_eos=True,
        )


def test_splits_that_a_dataset_does_not_have(tmp_path: Path) -> None:
    def convert(**options: Any) -> None:
        convert_hf(**{"dataset": "c4", "out_root": tmp_path / "out", **options})

    with pytest.raises(DataError, match=r"allenai/c4 has no 'test' here; known are train, "):
        convert(splits=["train", "test"])
    with pytest.raises(DataError, match="one is named twice"):
        convert(splits=["val", "val"])
    with pytest.raises(DataError, match=r"hf_split 'x' with several splits"):
        convert(splits=["a", "b"], hf_split="x")
    (tmp_path / "out" / "val").mkdir(parents=True)
    (tmp_path / "out" / "val" / "index.json").touch()
    with pytest.raises(DataError, match=r"val: not empty: it holds files \(index\.json\)"):
        convert(splits=["train_small", "val"])


def test_a_worker_that_dies_is_reported_and_can_be_resumed(
    tmp_path: Path,
    tokenizer_folder: str,
    lines: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from foundry_sdk.data.convert import pool

    options: dict[str, Any] = {
        "path": lines,
        "out_root": tmp_path,
        "concat_tokens": 8,
        "tokenizer": tokenizer_folder,
        "eos_text": "<|endoftext|>",
    }
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_START", "import os; os._exit(9)")
        began = time.monotonic()
        with pytest.raises(RunError, match=r"ended with exit code 9 at .*docs\.jsonl:1.*resume"):
            convert_json(**options)
        assert time.monotonic() - began < 60
    assert convert_json(**options, resume=True).samples > 100
