"""Shards written here are those of mosaicml-streaming's own writer, byte for byte."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundry_sdk.data import mds
from foundry_sdk.errors import DataError

MDSWriter = mds.import_streaming().MDSWriter


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_all(folder: Path, layout: mds.ShardLayout, groups: list[list[bytes]]) -> None:
    folder.mkdir()
    shards = [layout.shard(number, samples) for number, samples in enumerate(groups)]
    for shard in shards:
        mds.write_file(folder / shard.basename, shard.data)
    mds.write_file(folder / mds.INDEX_NAME, mds.index_json([shard.entry for shard in shards]))


@pytest.mark.parametrize("length", [1, 255, 256, 2048, 65_536])
def test_token_rows_equal_those_of_the_reference_writer(tmp_path: Path, length: int) -> None:
    rows = np.random.default_rng(length).integers(0, 50_000, (21, length)).astype(np.int32)
    limit = 5 * (4 * length + 16) + 230
    with MDSWriter(
        columns=mds.TOKEN_COLUMNS, out=str(tmp_path / "theirs"), size_limit=limit, hashes=["sha256"]
    ) as writer:
        for row in rows:
            writer.write({"tokens": row})

    layout = mds.ShardLayout(columns=mds.TOKEN_COLUMNS, size_limit=limit)
    encoded = mds.encode_token_rows(rows)
    capacity = layout.capacity(encoded.shape[1])
    (tmp_path / "ours").mkdir()
    entries = []
    for number, start in enumerate(range(0, len(rows), capacity)):
        shard = layout.shard_of_rows(number, encoded[start : start + capacity])
        mds.write_file(tmp_path / "ours" / shard.basename, shard.data)
        entries.append(shard.entry)
    mds.write_file(tmp_path / "ours" / mds.INDEX_NAME, mds.index_json(entries))

    assert len(entries) > 1
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


@pytest.mark.parametrize("compression", [None, "zstd", "zstd:7", "gz:3", "bz2", "br:4", "snappy"])
def test_text_samples_read_back_through_streaming(tmp_path: Path, compression: str | None) -> None:
    texts = ["", "a", "héllo 漢字 🙂\n" * 50, "x" * 3000]
    layout = mds.ShardLayout(columns=mds.TEXT_COLUMNS, compression=compression, size_limit=4096)
    samples = [mds.encode_text(text.encode()) for text in texts]
    write_all(tmp_path / "ours", layout, [samples[:2], samples[2:]])

    local_dataset: Any = mds.import_streaming().StreamingDataset(
        local=str(tmp_path / "ours"), shuffle=False, batch_size=1
    )
    assert [local_dataset[index]["text"] for index in range(4)] == texts


def test_text_shards_equal_those_of_the_reference_writer(tmp_path: Path) -> None:
    texts = [f"document {number} " * 9 for number in range(30)]
    with MDSWriter(
        columns=mds.TEXT_COLUMNS, out=str(tmp_path / "theirs"), size_limit=2000, hashes=["sha256"]
    ) as writer:
        for text in texts:
            writer.write({"text": text})
    sizes = [
        shard["samples"]
        for shard in json.loads((tmp_path / "theirs/index.json").read_text())["shards"]
    ]

    layout = mds.ShardLayout(columns=mds.TEXT_COLUMNS, size_limit=2000)
    samples = iter([mds.encode_text(text.encode()) for text in texts])
    write_all(tmp_path / "ours", layout, [[next(samples) for _ in range(size)] for size in sizes])
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


@pytest.mark.parametrize(
    "compression", ["zip", "zstd:99", "zstd:", "snappy:1", "zstd:-1", "gz:x", ""]
)
def test_unknown_compression_is_refused_with_the_known_ones(compression: str) -> None:
    with pytest.raises(DataError, match=r"compression.*zstd\[:1-22\]"):
        mds.ShardLayout(columns=mds.TEXT_COLUMNS, compression=compression)


def test_a_torchvision_that_raises_does_not_break_the_import(tmp_path: Path) -> None:
    import subprocess
    import sys

    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from foundry_sdk.data.mds import import_streaming\n"
        "print(import_streaming().MDSWriter.__name__, 'streaming.vision' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["MDSWriter", "False"]
