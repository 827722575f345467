"""Mutated indexes: each is refused with the file's name before anything is allocated."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundry_sdk.data.index import read_index
from foundry_sdk.errors import DataError


def read(folder):
    return read_index(folder / "index.json")


def test_an_index_of_streaming_is_read(mds):
    folder = mds(60, compression="zstd")
    index = read(folder)
    theirs = json.loads((folder / "index.json").read_text())
    assert index.samples == 60
    assert index.columns == {"tokens": "ndarray:int32"}
    assert [shard.stored.basename for shard in index.shards] == [
        entry["zip_data"]["basename"] for entry in theirs["shards"]
    ]
    assert index.shards[0].raw.hashes == theirs["shards"][0]["raw_data"]["hashes"]


def change(values, path, value):
    """Set the entry at a dotted path; "-" at its end takes the key away."""
    *parents, last = path.split(".")
    for key in parents:
        values = values[int(key) if key.isdigit() else key]
    if value == "remove":
        del values[last]
    else:
        values[last] = value


MUTATIONS = [
    ("version", "remove", "version"),
    ("version", 3, "found 3, expected 2"),
    ("version", "2", "expected 2"),
    ("shards", "remove", "shards"),
    ("shards", [], "the data has no samples"),
    ("shards", {"0": 1}, "a list of shards"),
    ("shards.0.samples", 10**12, "a whole number from 0 to"),
    ("shards.0.samples", -1, "a whole number"),
    ("shards.0.samples", 2.5, "a whole number"),
    ("shards.0.samples", True, "a whole number"),
    ("shards.0.raw_data.bytes", 10**18, "a whole number"),
    ("shards.0.raw_data", None, "raw_data"),
    ("shards.0.raw_data.basename", "../../stolen.mds", "escapes its root"),
    ("shards.0.raw_data.basename", "/etc/passwd", "escapes its root"),
    ("shards.0.raw_data.basename", "..", "escapes its root"),
    ("shards.0.raw_data.basename", "a\0b", "escapes its root"),
    ("shards.0.raw_data.basename", "C:\\x", "escapes its root"),
    ("shards.0.raw_data.basename", "index.json", "escapes its root"),
    ("shards.0.raw_data.basename", 7, "escapes its root"),
    ("shards.1.raw_data.basename", "shard.00000.mds", "one shard only"),
    ("shards.0.raw_data.hashes", {"sha256": "xyz"}, "hex digests"),
    ("shards.0.raw_data.hashes", [], "hex digests"),
    ("shards.0.format", "json", "expected 'mds'"),
    ("shards.0.column_encodings", ["pkl"], "can run code"),
    ("shards.0.column_encodings", ["ndarray:object"], "an MDS encoding"),
    ("shards.0.column_encodings", ["int32", "int32"], "as many encodings"),
    ("shards.0.column_names", [], "three lists"),
    ("shards.0.column_names", ["other"], "column_names"),
    ("shards.0.column_sizes", [-4], "a whole number"),
    ("shards.0.compression", "zstd", "as compression is set"),
    ("shards.0.size_limit", "1 parsec", "bytes, such as"),
    ("shards.0.hashes", "sha256", "a list of names"),
    ("shards.0.surprise", 1, "only the keys"),
    ("shards.0.version", 1, "expected 2"),
]


@pytest.mark.parametrize(("path", "value", "message"), MUTATIONS)
def test_a_changed_index_is_refused(mds, path, value, message):
    folder = mds(60)
    values = json.loads((folder / "index.json").read_text())
    change(values, path, value)
    (folder / "index.json").write_text(json.dumps(values))
    with pytest.raises(DataError) as error:
        read(folder)
    assert message in str(error.value)
    assert str(folder / "index.json") in str(error.value)


@pytest.mark.parametrize("name", ["lzma", "zip", "zstd2", 3])
def test_an_unknown_compression_is_refused(mds, name):
    folder = mds(20, compression="zstd")
    values = json.loads((folder / "index.json").read_text())
    values["shards"][0]["compression"] = name
    (folder / "index.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="expected one of br, bz2, gz, snappy, zstd"):
        read(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"null", b'{"version": NaN}'])
def test_what_is_no_index_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_bytes(text)
    with pytest.raises(DataError, match=r"index\.json"):
        read(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value, path=()):
    """Yield the path of every value inside."""
    yield path
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield from places(value[key], (*path, key))


FILE = {"basename": "shard.00000.mds", "bytes": 640, "hashes": {"sha256": "ab" * 32}}
PACKED = {**FILE, "basename": "shard.00000.mds.zstd", "bytes": 320}
ENTRY = {
    "samples": 12, "raw_data": FILE, "zip_data": PACKED, "compression": "zstd:7", "version": 2,
    "format": "mds", "hashes": ["sha256"], "size_limit": 1000, "column_names": ["tokens"],
    "column_encodings": ["ndarray:int32"], "column_sizes": [None],
}  # fmt: skip
ORIGINAL = {"version": 2, "shards": [ENTRY]}


def test_the_original_of_the_mutations_is_sane(tmp_path):
    (tmp_path / "index.json").write_text(json.dumps(ORIGINAL))
    assert read(tmp_path).samples == 12


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.sampled_from(list(places(ORIGINAL))), new=json_values)
def test_any_value_anywhere_is_read_or_refused_in_our_words(tmp_path, path, new):
    values = json.loads(json.dumps({"index": ORIGINAL}))
    inner = values
    for key in ("index", *path)[:-1]:
        inner = inner[key]
    inner[("index", *path)[-1]] = new
    (tmp_path / "index.json").write_text(json.dumps(values["index"]))
    try:
        samples: object = read(tmp_path).samples
    except DataError as error:
        samples = str(error)
    assert isinstance(samples, int) or "index.json" in str(samples)
