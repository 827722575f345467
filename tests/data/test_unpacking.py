"""Shards unpack to what they were made of, and never into more than their index says."""

import bz2
import gzip
import json
import random
import subprocess
import sys
import tracemalloc
import zlib

import brotli
import pytest
import snappy
import zstd

from foundry_sdk.data.text import TextDatasetSpec, TextDataSpec
from foundry_sdk.data.unpacking import unpack, zstd_content_size
from foundry_sdk.errors import DataError

PACK = {
    "br": lambda data: brotli.compress(data, quality=5),
    "bz2": bz2.compress,
    "gz": gzip.compress,
    "snappy": snappy.compress,
    "zstd": lambda data: zstd.compress(data, 3, 1),
}
SIZES = (0, 1, 255, 256, 257, 65_791, 65_792, 300_000)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PACK)
def test_what_was_packed_is_unpacked(name, size):
    noise = random.Random(size).randbytes(size // 2)  # noqa: S311
    data = noise + bytes(size - len(noise))
    packed = PACK[name](data)
    assert unpack(name, packed, size) == data
    assert unpack(f"{name}:3", packed, size + 1) == data
    if size:
        with pytest.raises(ValueError, match="it unpacks to"):
            unpack(name, packed, size - 1)


@pytest.mark.parametrize("name", PACK)
def test_a_bomb_is_refused_without_its_memory(name):
    packed = PACK[name](bytes(50_000_000))
    tracemalloc.start()
    with pytest.raises(ValueError, match="it unpacks to"):
        unpack(name, packed, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


BOMB = """
import resource, sys
from pathlib import Path
from foundry_sdk.data.unpacking import unpack
packed = Path(sys.argv[2]).read_bytes()
resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))
try:
    unpack(sys.argv[1], packed, 1000)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", PACK)
def test_gigabytes_are_refused_where_they_would_not_fit(name, tmp_path):
    part = bytes(1 << 28)
    several = name in {"bz2", "gz", "zstd"}  # their files may be joined
    packed = PACK[name](part) * 16 if several else PACK[name](part * 8)
    (tmp_path / "bomb").write_bytes(packed)
    done = subprocess.run(
        [sys.executable, "-c", BOMB, name, str(tmp_path / "bomb")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.startswith("it unpacks to")


def test_the_size_of_zstd_is_that_of_all_its_frames():
    frames = [zstd.compress(bytes(size), 3, 1) for size in SIZES]
    skipped = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    assert zstd_content_size(b"".join(frames)) == sum(SIZES)
    assert zstd_content_size(skipped + frames[3] + skipped) == SIZES[3]


@pytest.mark.parametrize("name", PACK)
def test_any_damage_is_an_error_or_of_the_right_size(name):
    data = random.Random(1).randbytes(3000) + bytes(3000)  # noqa: S311
    packed = PACK[name](data)
    errors: tuple[type[Exception], ...] = (ValueError, OSError, EOFError, RuntimeError)
    errors += (zlib.error, zstd.Error, brotli.error, snappy.UncompressError)
    wrong = 0
    for place in range(0, len(packed), 7):
        for damaged in (packed[:place], bytes([*packed[:place], packed[place] ^ 4])):
            whole = damaged + packed[len(damaged) :] if len(damaged) > place else damaged
            try:
                assert len(unpack(name, whole, len(data))) <= len(data)
            except errors:
                wrong += 1
    assert wrong


@pytest.mark.parametrize("compression", PACK)
def test_a_bomb_in_a_shard_is_named_with_its_file(mds, context, compression):
    folder = mds(20, compression=compression)
    index = json.loads((folder / "index.json").read_text())
    entry = index["shards"][0]
    bomb = PACK[compression](bytes(5_000_000))
    entry["zip_data"]["bytes"], entry["zip_data"]["hashes"] = len(bomb), {}
    entry["raw_data"]["hashes"] = {}
    (folder / entry["zip_data"]["basename"]).write_bytes(bomb)
    (folder / "index.json").write_text(json.dumps(index))
    dataset = TextDatasetSpec(local=str(folder))
    built = TextDataSpec(dataset=dataset, num_workers=0).build(context())
    try:
        with pytest.raises(DataError, match=r"shard\.00000\.mds\..*cannot be unpacked.*unpacks to"):
            list(built)
    finally:
        built.close()
