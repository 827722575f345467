"""Text to token shards: ``convert_json`` against the way of LLM Foundry's own converter.

    python benchmarks/conversion.py [--megabytes 40] [--repeats 3] [--out FOLDER]

The other way is one call of the Hugging Face tokenizer a document, Python lists of ids and
``streaming.MDSWriter``, in one process. Both read the same JSON Lines (Python's standard library,
and the papers in ``FOUNDRY_TEST_DATA`` if it is set), use the same tokenizer and write the same
rows, which is checked. They take turns, on all cores of the machine; ours is timed with the start
of its processes and the loading of the tokenizer, the other without its imports and loading.
"""

import argparse
import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import _record

from foundry_sdk.data import convert_json
from foundry_sdk.data.mds import TOKEN_COLUMNS, import_streaming

LENGTH = 2048
END = "<|endoftext|>"


def documents(megabytes: int) -> list[str]:
    """Return real text of about this size, each document once as long as there are others."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = [path for path in sorted(folder.rglob("*.py")) if "site-packages" not in path.parts]
    texts = []
    for path in found:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a test file of Python's, made to be wrong
            continue
        if text:  # an empty document is left out by the one and becomes END by the other
            texts.append(text)
    data = os.environ.get("FOUNDRY_TEST_DATA")
    if data:
        lines = (Path(data) / "arxiv.jsonl").read_text(encoding="utf-8").splitlines()
        papers = [str(json.loads(line)["text"]) for line in lines]
        step = max(1, len(texts) // (8 * len(papers)))
        for number, position in enumerate(range(0, len(texts), step)):
            texts.insert(position + number, papers[number % len(papers)])
    chosen, size = [], 0
    while size < megabytes * 1_000_000:
        for text in texts:
            chosen.append(text)
            size += len(text.encode())
            if size >= megabytes * 1_000_000:
                break
    return chosen


def tokenizer_name(texts: list[str], folder: Path) -> str:
    """Return GPT-NeoX's tokenizer if it is there, else one trained on the text."""
    data = os.environ.get("FOUNDRY_TEST_DATA")
    if data:
        return str(Path(data) / "gpt-neox-20b")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts[:400], trainer)
    make: Any = PreTrainedTokenizerFast
    wrapped = make(tokenizer_object=tokenizer, eos_token=END, bos_token=END)
    wrapped.save_pretrained(folder)
    return str(folder)


def other_way(source: Path, out: Path, name: str) -> float:
    """Convert as LLM Foundry does; return seconds."""
    from transformers import AutoTokenizer

    writer_class = import_streaming().MDSWriter
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.model_max_length = int(1e30)
    after = tokenizer(END, truncation=False, padding=False, add_special_tokens=False)["input_ids"]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    began = time.perf_counter()
    with (
        source.open(encoding="utf-8") as lines,
        writer_class(columns=TOKEN_COLUMNS, out=str(out)) as writer,
    ):
        buffer: list[int] = []
        for line in lines:
            ids = tokenizer(json.loads(line)["text"], truncation=False, padding=False)["input_ids"]
            buffer = buffer + ids + after
            while len(buffer) >= LENGTH:
                writer.write({"tokens": np.asarray(buffer[:LENGTH], dtype=np.int32)})
                buffer = buffer[LENGTH:]
    return time.perf_counter() - began


def our_way(source: Path, out: Path, name: str, workers: int | None) -> float:
    """Convert with this package; return seconds."""
    began = time.perf_counter()
    convert_json(
        path=source,
        out_root=out,
        concat_tokens=LENGTH,
        tokenizer=name,
        eos_text=END,
        num_workers=workers,
    )
    return time.perf_counter() - began


def all_rows(folder: Path) -> np.ndarray[Any, Any]:
    """Return int32 (rows, ids a row), read by mosaicml-streaming."""
    dataset = import_streaming().StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    return np.stack([dataset[index]["tokens"] for index in range(len(dataset))])


def main() -> None:
    """Take turns, check that the rows are equal, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        texts = documents(options.megabytes)
        source = root / "documents.jsonl"
        with source.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        name = tokenizer_name(texts, root / "tokenizer")
        seconds: dict[str, list[float]] = {"one by one": [], "ours": [], "ours, 1 worker": []}
        for turn in range(options.repeats):
            seconds["one by one"].append(other_way(source, root / f"other{turn}", name))
            seconds["ours"].append(our_way(source, root / f"ours{turn}", name, None))
            seconds["ours, 1 worker"].append(our_way(source, root / f"single{turn}", name, 1))
        expected = all_rows(root / "other0")
        if not np.array_equal(expected, all_rows(root / "ours0" / "train")):
            raise SystemExit("the rows differ: this comparison means nothing")
        base = statistics.median(seconds["one by one"])
        for way, times in seconds.items():
            median = statistics.median(times)
            rows.append(
                {
                    "way": way,
                    "documents": len(texts),
                    "bytes": sum(len(text.encode()) for text in texts),
                    "tokens": int(expected.size),
                    "tokenizer": Path(name).name,
                    "seconds": [round(value, 2) for value in times],
                    "tokens_per_second": round(expected.size / median),
                    "times_as_fast": round(base / median, 2),
                    "ratio_each_turn": [
                        round(other / value, 2)
                        for other, value in zip(seconds["one by one"], times, strict=True)
                    ],
                }
            )
            print(json.dumps(rows[-1]))
    print(_record.write("conversion", rows, options.out))


if __name__ == "__main__":
    main()
