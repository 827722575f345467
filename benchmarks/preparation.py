"""Prompts and responses to token ids: the finetuning loader against ``datasets.map``.

    python benchmarks/preparation.py [--examples 100000] [--repeats 3] [--out FOLDER]

Three ways, each in a process of its own, one after the other, over the same JSON Lines and with the
same tokenizer: the loader's (``ours``); ``datasets.map`` over batches of 1000, which is the fastest
that the library itself has (``map, batched``); and a map of one example a call with a filter behind
it, as LLM Foundry does it (``map, one by one``). Timed from the file to ids on the disk that can be
read in any order, without imports and the loading of the tokenizer; CPU time is that of all
threads; memory is the process's peak above what it had before (anonymous pages, mapped files
left out). The ids of all ways are compared.

The examples are those of ``FOUNDRY_TEST_DATA`` (dolly_hhrlhf), each time with another number in
them; without it, functions of Python's standard library, to be written for their docstrings.
"""

import argparse
import ast
import hashlib
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
import _record
from conversion import tokenizer_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Read = Callable[[], Iterable[tuple[Any, Any]]]
WAYS = ("ours", "map, batched", "map, one by one")
PLAIN: dict[str, Any] = {"padding": False, "truncation": False}


def real_examples() -> list[dict[str, str]]:
    """Return real prompts and responses, some hundreds at least."""
    data = os.environ.get("FOUNDRY_TEST_DATA")
    if data:
        lines = (Path(data) / "dolly_hhrlhf_train_small.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in lines.splitlines()]
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (about := ast.get_docstring(node)):
                code = ast.get_source_segment(text, node) or ""
                found.append({"prompt": f"# {about}\ndef {node.name}", "response": code})
    return found


def write_examples(path: Path, count: int) -> list[str]:
    """Write ``count`` examples, no two the same; return some of their texts."""
    rows = real_examples()
    texts = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            response = f"{row['response']} (answer {number})"
            file.write(json.dumps({"prompt": row["prompt"], "response": response}) + "\n")
            if number < 400:
                texts.append(row["prompt"] + response)
    return texts


def ours(source: Path, folder: Path, tokenizer: "PreTrainedTokenizerBase") -> Read:
    """Prepare as a run does; return how to read the ids."""
    from foundry_sdk.data.finetuning.rows import TableSource
    from foundry_sdk.data.finetuning.tokenized import SourceRecipe, tokenized

    options = {"data_files": str(source)}
    rows = TableSource(name="json", split="train", options=options, safe=False)
    (examples,) = tokenized([SourceRecipe(name="train", source=rows)], tokenizer, folder)
    return lambda: (examples.turns(number)[0] for number in range(len(examples)))


def by_map(source: Path, tokenizer: "PreTrainedTokenizerBase", *, batched: bool) -> Read:
    """Prepare with ``datasets.map``; return how to read the ids."""
    from datasets import load_dataset

    def batch(rows: Mapping[str, list[str]]) -> dict[str, Any]:
        prompts = tokenizer(rows["prompt"], **PLAIN)["input_ids"]
        responses = tokenizer(text_target=rows["response"], **PLAIN)["input_ids"]
        return {"input_ids": prompts, "labels": responses}

    def one(row: Mapping[str, str]) -> dict[str, Any]:
        found = tokenizer(text=row["prompt"], text_target=row["response"], **PLAIN)
        return {"turns": [{"input_ids": found["input_ids"], "labels": found["labels"]}]}

    def is_whole(row: Mapping[str, Any]) -> bool:
        return all(turn["input_ids"] and turn["labels"] for turn in row["turns"])

    table = load_dataset("json", data_files=str(source), split="train")
    made = table.map(batch if batched else one, batched=batched, remove_columns=table.column_names)
    if not batched:
        made = made.filter(is_whole)

    def read() -> Iterator[tuple[Any, Any]]:
        for row in made:
            turn = row if batched else row["turns"][0]
            yield turn["input_ids"], turn["labels"]

    return read


def anonymous_bytes() -> int:
    """Return the memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(
        int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")
    )


def peak_during(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return what ``work`` returns, and the peak of the memory above what was there before."""
    before, peak, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_bytes() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        return work(), peak[0]
    finally:
        done.set()
        thread.join()


def measure(way: str, source: Path, name: str) -> dict[str, Any]:
    """Prepare once in this process; return seconds, memory and a digest of the ids."""
    import datasets
    import numpy as np
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.model_max_length = int(1e30)
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "arrow"
        began, cpu = time.perf_counter(), time.process_time()
        if way == "ours":
            work = lambda: ours(source, Path(folder) / "ours", tokenizer)  # noqa: E731
        else:
            work = lambda: by_map(source, tokenizer, batched="batched" in way)  # noqa: E731
        read, peak = peak_during(work)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        digest, tokens = hashlib.sha256(), 0
        for pair in read():
            for ids in pair:
                array = np.asarray(ids, np.int32)
                tokens += len(array)
                digest.update(len(array).to_bytes(8, "little") + array.tobytes())
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_bytes": peak,
        "tokens": tokens,
        "sha256": digest.hexdigest(),
    }


def in_own_process(way: str, source: Path, name: str) -> dict[str, Any]:
    """Run ``measure`` in a new process."""
    command = [sys.executable, __file__, "--way", way, "--source", str(source), "--name", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(way, json.dumps(found), flush=True)
    return found


def row_of(way: str, results: Mapping[str, list[dict[str, Any]]], examples: int) -> dict[str, Any]:
    """Return a way's row of the record."""
    own, base = results[way], results["map, batched"]

    def median(found: list[dict[str, Any]], key: str) -> float:
        return float(statistics.median(each[key] for each in found))

    return {
        "way": way,
        "examples": examples,
        "tokens": own[0]["tokens"],
        "seconds": [round(each["seconds"], 1) for each in own],
        "cpu_seconds": [round(each["cpu_seconds"], 1) for each in own],
        "times_as_fast": round(median(base, "seconds") / median(own, "seconds"), 2),
        "times_as_fast_cpu": round(median(base, "cpu_seconds") / median(own, "cpu_seconds"), 2),
        "peak_megabytes": round(max(each["peak_bytes"] for each in own) / 1e6),
    }


def main() -> None:
    """Take turns, check that the ids are equal, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.source, options.name)))
        return
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "examples.jsonl"
        name = tokenizer_name(write_examples(source, options.examples), Path(folder) / "tokenizer")
        for turn in range(options.repeats):
            # Whoever is first has the colder caches: it is not always the same one.
            for way in WAYS[turn % len(WAYS) :] + WAYS[: turn % len(WAYS)]:
                results[way].append(in_own_process(way, source, name))
    if len({each["sha256"] for found in results.values() for each in found}) != 1:
        raise SystemExit("the ids differ: this comparison means nothing")
    rows = [row_of(way, results, options.examples) for way in WAYS]
    print(json.dumps(rows, indent=1))
    print(_record.write("preparation", rows, options.out))


if __name__ == "__main__":
    main()
