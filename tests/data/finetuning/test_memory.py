"""Memory doesn't grow with the number of examples, which a process of its own shows."""

import json
import subprocess
import sys

import pytest

DRIVER = """
import json, re, sys
from pathlib import Path
from foundry_sdk.data.contract import TokenizerSpec
from foundry_sdk.data.finetuning.rows import TableSource
from foundry_sdk.data.finetuning.store import ExampleWriter
from foundry_sdk.data.finetuning.tokenized import SourceRecipe, tokenized
from foundry_sdk.data.tokenizer import load_tokenizer
source, tokenizer, root = sys.argv[1:]
tokenizer = load_tokenizer(TokenizerSpec(name=tokenizer))
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
rows = TableSource(name=source, split="train", options={}, safe=False)
seen = []
append = ExampleWriter.append
def watched(self, examples, **more):
    append(self, examples, **more)
    seen.append(anonymous())
ExampleWriter.append = watched
(examples,) = tokenized([SourceRecipe(name="train", source=rows)], tokenizer, Path(root))
print(json.dumps({"seen": seen, "examples": len(examples), "bytes": examples.tokens.nbytes}))
"""


@pytest.mark.slow
def test_later_examples_take_no_more_memory_than_the_first(tmp_path, bpe_folder):
    file = tmp_path / "many.jsonl"
    with file.open("w") as lines:
        for n in range(30_000):
            row = {"prompt": f"the cat {n % 500} sat " * 15, "response": f"dog {n % 7} " * 15}
            lines.write(json.dumps(row) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(file), str(bpe_folder), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["examples"] == 30_000
    assert found["bytes"] > 2**20 * 15
    assert len(found["seen"]) == 30
    growth = max(found["seen"][10:]) - max(found["seen"][:10])
    assert growth < 4, found["seen"]  # mebibytes; the ids of these examples alone are more than 10
