"""Memory doesn't grow with the input: each case is a process of its own, measured by the kernel."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
import json, re, sys
from pathlib import Path
from foundry_sdk.data import convert_json, convert_text
options = json.loads(sys.argv[1])
if "tokenizer" in options:
    from foundry_sdk.data.contract import TokenizerSpec
    from foundry_sdk.data.tokenizer import load_tokenizer
    load_tokenizer(TokenizerSpec(name=options["tokenizer"]))
def peak():  # getrusage would count the parent's memory before exec, too
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10
before = peak()
card = (convert_text if "input_folder" in options else convert_json)(**options)
print(json.dumps({"before": before, "after": peak(), "documents": card.documents}))
"""


def measured(**options: object) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    figures: dict[str, int] = json.loads(done.stdout)
    return figures


def test_a_line_of_ten_megabytes(tmp_path: Path, tokenizer_folder: str) -> None:
    source = tmp_path / "docs.jsonl"
    line = json.dumps({"text": "some words é, " * 750_000}, ensure_ascii=False)
    source.write_text(f'{{"text": "a"}}\n{line}\n', encoding="utf-8")
    assert source.stat().st_size > 10_000_000

    as_text = measured(path=str(source), out_root=str(tmp_path / "text"))
    assert as_text["documents"] == 2
    assert as_text["after"] < 300  # mebibytes, all in all

    as_tokens = measured(
        path=str(source),
        out_root=str(tmp_path / "tokens"),
        concat_tokens=512,
        tokenizer=tokenizer_folder,
        eos_text="<|endoftext|>",
    )
    assert as_tokens["after"] - as_tokens["before"] < 300


@pytest.mark.slow
def test_a_file_of_100_megabytes_takes_no_more_than_one_of_25(
    tmp_path: Path, tokenizer_folder: str
) -> None:
    grown = []
    for megabytes in (25, 100):
        folder = tmp_path / str(megabytes)
        folder.mkdir()
        (folder / "one.txt").write_text("Some words é, and more of them.\n" * (megabytes * 31_250))
        figures = measured(
            input_folder=str(folder),
            output_folder=str(tmp_path / f"out{megabytes}"),
            concat_tokens=512,
            tokenizer=tokenizer_folder,
            use_tokenizer_eos=True,
            size_limit=8 << 20,
            num_workers=2,
        )
        assert figures["documents"] == 1
        grown.append(figures["after"] - figures["before"])
    assert grown[1] < grown[0] + 50
