"""The command in this process, on tiny material, where nothing may be reached or built."""

import json
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs
import numpy as np
import pytest

from foundry_sdk.cli.main import main
from foundry_sdk.data.mds import (
    TOKEN_COLUMNS,
    ShardLayout,
    encode_row,
    encode_token_rows,
    index_json,
)

LENGTH = 16
WORDS = 64

HEAD = """\
run_name: run
run_root: {folder}/runs
max_seq_len: 16
model:
  name: mpt_causal_lm
  d_model: 16
  n_heads: 2
  n_layers: 1
  max_seq_len: 16
  vocab_size: 64
  attn_config: {{attn_impl: torch}}
tokenizer: {{name: {folder}/tokenizer}}
optimizer: {{name: decoupled_adamw, lr: 0.01}}
scheduler: {{name: cosine_with_warmup, t_warmup: 2ba}}
max_duration: 4ba
global_train_batch_size: 4
device_train_microbatch_size: 2
precision: fp32
progress_bar: false
log_to_console: false
"""
PRETRAIN = f"""{HEAD}train_loader:
  name: text
  dataset: {{{{local: {{folder}}/data, shuffle: true}}}}
  num_workers: 0
"""
FINETUNE = f"""{HEAD}train_loader:
  name: finetuning
  dataset:
    hf_name: {{folder}}/rows.jsonl
    split: train
    cache_dir: {{folder}}/cache
  num_workers: 0
"""


@attrs.frozen
class Answer:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of its errors."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


Foundry = Callable[..., Answer]


@pytest.fixture
def foundry(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Foundry:
    """Return a function that runs ``foundry ARGUMENTS`` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        code = ended.value.code
        return Answer(code if isinstance(code, int) else int(code is not None), said.out, said.err)

    return run


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Let nothing be reached; return the addresses that somebody tried."""
    tried: list[object] = []

    def refuse(_: object, address: object, *__: object) -> NoReturn:
        tried.append(address)
        raise ConnectionRefusedError(f"a connection to {address} in a test without network")

    def no_name(*where: object, **_: object) -> NoReturn:
        raise socket.gaierror(f"no address for {where}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "RUN_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tried


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail as soon as a model would be built."""

    def refuse(*_: object, **__: object) -> NoReturn:
        pytest.fail("a model was built before the mistake was found")

    monkeypatch.setattr("foundry_sdk.training.assemble._model", refuse)


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch, no_model: None) -> None:
    """Fail as soon as a device, a process group or a model would be touched."""
    del no_model

    def refuse(*_: object, **__: object) -> NoReturn:
        pytest.fail("a device was taken before the mistake was found")

    monkeypatch.setattr("foundry_sdk.training.runtime.Runtime.start", refuse)


def write_shards(
    folder: Path, encoded: Sequence[bytes], columns: Mapping[str, str] = TOKEN_COLUMNS
) -> Path:
    """Write a folder of MDS shards with these samples."""
    folder.mkdir(parents=True, exist_ok=True)
    shard = ShardLayout(columns=columns).shard(0, encoded)
    (folder / shard.basename).write_bytes(shard.data)
    (folder / "index.json").write_bytes(index_json([shard.entry]))
    return folder


def token_rows(count: int, *, length: int = LENGTH, highest: int = WORDS - 1) -> list[bytes]:
    """Return ``count`` encoded rows of ids; the last id of all is ``highest``."""
    rows = np.random.default_rng(0).integers(0, WORDS - 1, (count, length), np.int32)
    if count:
        rows[-1, -1] = highest
    return [row.tobytes() for row in encode_token_rows(rows)]


def examples(count: int) -> list[dict[str, Any]]:
    """Return ``count`` prompts with their responses."""
    return [{"prompt": f"w{n % 60} w1", "response": f" w{(n + 1) % 60} w2"} for n in range(count)]


@attrs.frozen
class Material:
    """A folder with a tokenizer, shards and examples, and specs over them."""

    folder: Path

    def pretrain(self, text: str = PRETRAIN) -> Path:
        """Write the spec of a pretraining run."""
        path = self.folder / "run.yaml"
        path.write_text(text.format(folder=self.folder), encoding="utf-8")
        return path

    def finetune(self, rows: Sequence[Any] | str | bytes | None = None) -> Path:
        """Write the spec of a finetuning run over ``rows``, as JSON or as they are."""
        if rows is None:
            rows = examples(8)
        if isinstance(rows, str):
            rows = rows.encode()
        if not isinstance(rows, bytes):
            rows = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (self.folder / "rows.jsonl").write_bytes(rows)
        return self.pretrain(FINETUNE)

    def tokens(self, name: str, count: int, *, highest: int = WORDS - 1) -> None:
        """Write ``count`` rows of ids as shards; the last id of all is ``highest``."""
        write_shards(self.folder / name, token_rows(count, highest=highest))

    def texts(self, name: str, *rows: Mapping[str, str]) -> None:
        """Write rows of texts as shards."""
        columns = dict.fromkeys(rows[0], "str")
        write_shards(self.folder / name, [encode_row(columns, row) for row in rows], columns)

    def examples(self, count: int) -> list[dict[str, Any]]:
        """Return ``count`` prompts with their responses."""
        return examples(count)

    def edit_index(self, key: str, value: object, *, name: str = "data") -> None:
        """Change the first shard's entry in the index."""
        path = self.folder / name / "index.json"
        values = json.loads(path.read_bytes())
        *parents, last = key.split(".")
        target = values["shards"][0]
        for parent in parents:
            target = target[parent]
        target[last] = value
        path.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 64 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    vocabulary = {f"w{i}": i for i in range(WORDS - 1)} | {"<eos>": WORDS - 1}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(folder)
    return folder


@pytest.fixture
def material(tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Material:
    """Return a folder with everything that a run needs."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    if "datasets" in sys.modules:  # which reads the variable when it is imported
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setenv("FOUNDRY_CACHE", str(tmp_path / "foundry"))
    (tmp_path / "tokenizer").symlink_to(tokenizer_folder)
    write_shards(tmp_path / "data", token_rows(12))
    return Material(tmp_path)
