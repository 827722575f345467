"""Datasets of a hub: a local server that answers the hub's API, asked by ``datasets`` itself."""

import gzip
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from foundry_sdk.data import DataCard

pyarrow = pytest.importorskip("pyarrow", reason="needs datasets")

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's API that reading a public dataset needs."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            self._api("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "datasets" and parts[3] == "resolve":
            self._file("/".join(parts[1:3]), "/".join(parts[5:]))
        else:
            self._missing()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def _api(self, name: str, rest: list[str]) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        files = self.repositories.get(name)
        if files is None:
            return self._missing("RepoNotFound")
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self._json({"id": name, "sha": REVISION, "siblings": siblings, "tags": []})
        entries = {
            str(folder): {"type": "directory", "path": str(folder), "size": 0, "oid": "0"}
            for path in files
            for folder in Path(path).parents
            if str(folder) != "."
        }
        entries |= {
            path: {"type": "file", "path": path, "size": len(data), "oid": digest(data)}
            for path, data in files.items()
        }
        if rest[0] == "tree":
            below = "/".join(rest[2:]) or "."
            whole = "recursive=true" in self.path.lower()
            return self._json(
                [
                    entry
                    for path, entry in entries.items()
                    if str(Path(path).parent) == below
                    or (whole and below in {".", *map(str, Path(path).parents)})
                ]
            )
        if rest[0] == "paths-info":
            wanted = (
                json.loads(body)["paths"]
                if body.startswith(b"{")
                else parse_qs(body.decode())["paths"]
            )
            return self._json([entries[path] for path in wanted if path in entries])
        return self._missing()

    def _file(self, name: str, path: str) -> None:
        data = self.repositories.get(name, {}).get(path)
        if data is None:
            return self._missing("EntryNotFound")
        status, part, total = 200, data, len(data)
        wanted = self.headers.get("Range")
        self_range = None
        if wanted is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last or total - 1), total - 1)
            status, part = 206, data[int(first) : end + 1]
            self_range = f"bytes {first}-{end}/{total}"
        self.send_response(status)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{digest(data)}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Accept-Ranges", "bytes")
        if self_range is not None:
            self.send_header("Content-Range", self_range)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(part)
        return None

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code: str = "") -> None:
        self.send_response(404)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep the test's output clean."""


def digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(texts: list[str]) -> bytes:
    import pyarrow.parquet

    sink = io.BytesIO()
    table = pyarrow.table({"content": texts, "stars": list(range(len(texts)))})
    pyarrow.parquet.write_table(table, sink, row_group_size=5)
    return sink.getvalue()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def hub(endpoint: str, texts: list[str], tmp_path: Path) -> dict[str, str]:
    """Fill the hub; return the environment of a process that asks it."""
    en = [{"text": text, "url": "x"} for text in texts]
    Hub.repositories = {
        "allenai/c4": {
            "en/c4-train.00000-of-00002.json.gz": gzip.compress(jsonl(en[:10])),
            "en/c4-train.00001-of-00002.json.gz": gzip.compress(jsonl(en[10:])),
            "en/c4-validation.00000-of-00001.json.gz": gzip.compress(jsonl(en[3:6])),
            "README.md": C4_CARD.encode(),
        },
        "acme/code": {
            "data/train-00000-of-00002.parquet": parquet(texts[:7]),
            "data/train-00001-of-00002.parquet": parquet(texts[7:]),
            "data/test-00000-of-00001.parquet": parquet(texts[2:4]),
        },
    }
    Hub.asked.clear()
    return {
        **{key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }


C4_CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
---
# C4
"""

DRIVER = """
import json, sys
from foundry_sdk.data import convert_hf
from foundry_sdk.data.convert import hub, units
from foundry_sdk.errors import FoundryError
hub.UNIT = units.UNIT = 20_000
try:
    convert_hf(**json.loads(sys.argv[1]))
except FoundryError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(2)
"""


def convert(environment: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(options)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_named_splits_of_c4(
    *, hub: dict[str, str], texts: list[str], tmp_path: Path, read_rows: Any
) -> None:
    out = tmp_path / "out"
    done = convert(
        hub,
        dataset="c4",
        data_subset="en",
        splits=["train_small", "val_xxsmall"],
        out_root=str(out),
        size_limit=50_000,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["train_small", "val_xxsmall"]
    assert read_rows(out / "train_small", "text") == texts
    assert read_rows(out / "val_xxsmall", "text") == texts[3:6]
    card = DataCard.read(out / "train_small")
    assert card is not None
    assert card.options["max_samples"] == 100_000
    assert (card.sources[0].path, card.sources[0].revision) == ("allenai/c4:en:train", REVISION)
    assert all("0123456789" in line for line in Hub.asked if "/resolve/" in line)


@pytest.mark.slow
def test_tokens_of_any_dataset_killed_and_resumed(
    *,
    hub: dict[str, str],
    texts: list[str],
    tmp_path: Path,
    tokenizer_folder: str,
    naive_rows: Any,
    read_rows: Any,
    digests: Any,
) -> None:
    from transformers import AutoTokenizer

    options = {
        "dataset": "acme/code",
        "splits": ["code"],
        "hf_split": "train",
        "text_column": "content",
        "concat_tokens": 64,
        "tokenizer": tokenizer_folder,
        "eos_text": "<|endoftext|>",
        "size_limit": 20_000,
    }
    done = convert(hub, **options, out_root=str(tmp_path / "whole"), num_workers=1)
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    expected = naive_rows(texts, tokenizer, 64, eos="<|endoftext|>")
    assert read_rows(tmp_path / "whole" / "code") == expected

    options |= {"out_root": str(tmp_path / "killed"), "num_workers": 2, "resume": True}
    for nth in (5, 14):
        killed = convert({**hub, "FOUNDRY_FAULT": f"convert.*:{nth}:kill"}, **options)
        assert killed.returncode == -9
    done = convert(hub, **options)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_errors_name_the_dataset(*, hub: dict[str, str], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    missing = convert(hub, dataset="acme/nothing", out_root=out)
    assert missing.returncode == 2
    assert "DataError: dataset 'acme/nothing': " in missing.stderr
    split = convert(hub, dataset="acme/code", splits=["dev"], out_root=out)
    assert split.returncode == 2
    assert "DataError: dataset 'acme/code': " in split.stderr
    assert "--hf-split" in split.stderr
    column = convert(hub, dataset="acme/code", out_root=out)
    assert column.returncode == 2
    assert "acme/code:train row 1: no column 'text', found content, stars" in column.stderr
    offline = convert({**hub, "HF_ENDPOINT": "http://127.0.0.1:9"}, dataset="a/b", out_root=out)
    assert offline.returncode == 2
    assert "DataError: dataset 'a/b': " in offline.stderr
    for done in (missing, split, column, offline):
        assert "Traceback" not in done.stderr


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foundry_sdk.data import convert_hf
    from foundry_sdk.errors import DataError

    monkeypatch.setattr("foundry_sdk.data.convert.hub.find_spec", lambda _: None)
    with pytest.raises(DataError, match="'c/d': needs the package datasets; pip install datasets"):
        convert_hf(dataset="c/d", out_root=tmp_path / "out")


def test_a_local_folder_needs_no_hub(
    *, hub: dict[str, str], texts: list[str], tmp_path: Path, read_rows: Any
) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "train.jsonl").write_bytes(
        jsonl([{"text": text} for text in ["", *texts]])
    )
    done = convert(
        hub, dataset=str(tmp_path / "dataset"), out_root=str(tmp_path / "out"), max_samples=5
    )
    assert done.returncode == 0, done.stderr
    assert read_rows(tmp_path / "out" / "train", "text") == texts[:5]
    assert not [line for line in Hub.asked if "dataset" in line]
