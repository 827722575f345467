"""What input that means harm tries here, and that nothing comes of it.

Hostile YAML is in ``tests/cli/test_check.py`` and ``tests/specs``, hostile indexes are in
``tests/data/test_index.py``, packed shards in ``tests/data/test_unpacking.py``, manifests and
pickles in place of checkpoints in ``tests/checkpoint``, code and pickles of a model's folder in
``tests/models/huggingface/test_refusals.py``, forty kinds of secrets in
``tests/runs/test_redact.py``, the list of allowed plugins in ``tests/plugin``.
"""

import ast
import json
import logging
import os
import pickle
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

import foundry_sdk

ROOT = Path(foundry_sdk.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))


class Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


# ---- what the source never does

RUNS_CODE = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.loads"),
    *("pickle.load", "marshal.loads", "shelve.open", "joblib.load", "dill.load", "yaml.load"),
    *("np.load", "numpy.load", "torch.hub.load", "tarfile.open", "zipfile.ZipFile"),
    *("shutil.unpack_archive", "tempfile.mktemp"),
}
SAFE_KEYWORDS = {"shell": False, "trust_remote_code": False, "weights_only": True}
SAFE_KEYWORDS |= {"allow_pickle": False, "allow_unsafe_types": False}
# A plugin author's own component is sent through pickle, as workers of a loader would.
PICKLES_ITS_OWN = {"testing/failure.py"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(text: str) -> list[str]:
    """Return the calls in Python source that run code, or switch off what keeps others from it."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in RUNS_CODE or (name == "torch.load" and "weights_only" not in given):
            found.append(f"line {node.lineno}: {name}()")
        for key, safe in SAFE_KEYWORDS.items():
            value = given.get(key)
            if isinstance(value, ast.Constant) and value.value is not safe:
                found.append(f"line {node.lineno}: {key}={value.value}")
    return found


def test_the_scan_finds_what_it_is_for() -> None:
    for text in (
        "import pickle\npickle.loads(b)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "eval('1')",
        "subprocess.run(c, shell=True)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)",
    ):
        assert dangers(text), text
    assert dangers("torch.load(f, weights_only=True)\nmodel.eval()\nre.compile('a')") == []


def test_no_source_file_unpickles_evaluates_or_starts_a_shell() -> None:
    found = {
        str(path.relative_to(ROOT)): dangers(path.read_text(encoding="utf-8")) for path in SOURCES
    }
    assert {name for name, lines in found.items() if lines} <= PICKLES_ITS_OWN, found


# ---- the network

WATCH = """
import os, sys
def watch(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"}:
        sys.stderr.write(f"NETWORK {event} {arguments}\\n")
        os._exit(99)
sys.addaudithook(watch)
"""


def run_watched(code: str, *, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if "TRACK" not in name}
    kept = {name: value for name, value in kept.items() if "TELEMETRY" not in name}
    return subprocess.run(
        [sys.executable, "-c", WATCH + code],
        env={**kept, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_watch_sees_a_connection(tmp_path):
    done = run_watched("import socket; socket.create_connection(('127.0.0.1', 9))", cwd=tmp_path)
    assert done.returncode == 99


@pytest.mark.slow
def test_neither_importing_nor_help_nor_a_check_opens_a_socket(material):
    code = """
import foundry_sdk
for names in foundry_sdk._HOMES.values():
    for name in names:
        getattr(foundry_sdk, name)
from foundry_sdk.cli.main import main
for words in (["--help"], ["train", "--help"], ["check", "-q", "run.yaml"], ["plugins"]):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, (words, end.code)
"""
    material.pretrain()
    done = run_watched(code, cwd=material.folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_training_on_local_data_reaches_for_nothing(foundry, material, alone):
    for path in (material.pretrain(), material.finetune()):
        done = foundry("train", path, f"run_name={path.stem}-{secrets.token_hex(2)}")
        assert done.code == 0, done.err
    assert alone == []


def test_libraries_are_told_to_report_nothing(tmp_path):
    code = """
import foundry_sdk
from huggingface_hub import constants
assert constants.HF_HUB_DISABLE_TELEMETRY
import os
assert os.environ["DO_NOT_TRACK"] == "1"
"""
    done = run_watched(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# ---- secrets

KEY = "hf_" + "q9Zx7Lm2Vb8Nc4Rt6Yp1"


def test_no_message_quotes_a_secret(foundry, material):
    path = material.pretrain()
    for words in (
        ("loggers.wandb.api_kye=" + KEY,),
        ("api_key=canary-one", "optimizer.lr=fast"),
        ("progress_bar=https://me:canary-two@host/data?sig=canary",),
        ("run_name={password: canary-three}",),
    ):
        for more in ((), ("--debug",)):
            done = foundry("train", path, *words, *more)
            assert done.code == 2
            assert "<redacted>" in done.err
            assert "canary" not in done.err
            assert KEY not in done.err


def test_an_unforeseen_error_quotes_no_secret(monkeypatch, capsys):
    from foundry_sdk.cli import main as module

    monkeypatch.setenv("ACME_API_KEY", "canary-in-the-environment")
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)

    def fail(**_: object) -> None:
        raise KeyError(f"https://me:canary@host/{KEY}?sig=canary canary-in-the-environment")

    monkeypatch.setattr(module, "app", fail)
    with pytest.raises(KeyError) as caught:
        module.main(["check", "x"])
    sys.excepthook(caught.type, caught.value, caught.tb)
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "KeyError" in said
    assert "canary" not in said
    assert KEY not in said


def test_a_line_of_the_log_quotes_no_secret():
    from foundry_sdk.cli.without_secrets import WithoutSecrets

    formatter = WithoutSecrets("%(message)s")
    try:
        raise ValueError(f"denied: {KEY}")
    except ValueError:
        record = logging.LogRecord(
            "x", logging.WARNING, __file__, 1, "token=%s", ("canary",), sys.exc_info()
        )
    said = formatter.format(record)
    assert said.startswith("token=<redacted>\nTraceback")
    assert KEY not in said


def test_nothing_that_a_run_leaves_behind_holds_a_secret(foundry, material, monkeypatch):
    monkeypatch.setenv("ACME_ACCESS_TOKEN", "canary-in-the-environment")
    words = (
        *("metadata.api_key=canary-one", f"metadata.note=see {KEY}", "log_config=true"),
        *("metadata.url=https://me:canary-two@host/x?sig=canary-three", "log_to_console=true"),
        "metadata.other=canary-in-the-environment",
    )
    monkeypatch.setattr(sys, "argv", ["foundry", "train", "run.yaml", *words])
    done = foundry("train", material.pretrain(), *words)
    assert done.code == 0, done.err
    written = [path for path in (material.folder / "runs").rglob("*") if path.is_file()]
    assert len(written) > 5
    texts = {str(path): path.read_bytes() for path in written}
    texts |= {"output": done.out.encode(), "errors": done.err.encode()}
    for name, content in texts.items():
        assert b"canary" not in content, name
        assert KEY.encode() not in content, name


# ---- code and paths in what is read


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "run.ckpt", ".metadata"])
def test_a_pickle_to_begin_from_is_refused_unread(name, foundry, material):
    mark = material.folder / "run-by-a-pickle"
    folder = material.folder / "theirs"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Canary(mark)))
    for path in (folder, folder / name):
        done = foundry("train", material.pretrain(), f"load_path={path}")
        assert (done.code, len(done.lines)) == (2, 1)
    assert not mark.exists()


def test_code_that_a_spec_names_is_not_run(foundry, material):
    mark = material.folder / "run-by-a-spec"
    (material.folder / "code.py").write_text(f"open({str(mark)!r}, 'w')\n")
    done = foundry("train", material.pretrain(), "code_paths=[code.py]")
    assert (done.code, len(done.lines)) == (2, 1)
    assert "a spec runs no code" in done.err
    assert not mark.exists()


@pytest.fixture
def model_folder(tmp_path):
    """A small GPT-2 in several files, with the index that says which tensor is where."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 16, "vocab_size": 64}
    tokens = {"bos_token_id": 0, "eos_token_id": 63}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **tokens))
    model.save_pretrained(folder, max_shard_size="5KB")
    return folder


def hf_spec(material, folder):
    path = material.pretrain()
    text = path.read_text()
    start, end = text.index("model:"), text.index("tokenizer:")
    model = f"model: {{name: hf_causal_lm, pretrained_model_name_or_path: {folder}}}\n"
    path.write_text(text[:start] + model + text[end:])
    return path


def test_the_model_of_these_tests_trains(foundry, material, model_folder):
    done = foundry("train", hf_spec(material, model_folder))
    assert done.code == 0, done.err


ELSEWHERE = ("../stolen.safetensors", "/opt/stolen.safetensors", "a\0.safetensors", "x.bin", 7)


@pytest.mark.parametrize("place", ELSEWHERE)
def test_an_index_of_weights_names_files_of_its_folder_only(place, foundry, material, model_folder):
    index = model_folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    first = sorted(values["weight_map"])[0]
    whole = model_folder / values["weight_map"][first]
    (model_folder.parent / "stolen.safetensors").write_bytes(whole.read_bytes())
    values["weight_map"][first] = place
    index.write_text(json.dumps(values))
    done = foundry("train", hf_spec(material, model_folder))
    assert (done.code, len(done.lines)) == (2, 1)
    assert "expected the name of a .safetensors file of this folder" in done.err


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_what_is_no_index_of_weights_is_named(text, foundry, material, model_folder):
    (model_folder / "model.safetensors.index.json").write_text(text)
    done = foundry("train", hf_spec(material, model_folder))
    assert (done.code, len(done.lines)) == (2, 1)
    assert "model.safetensors.index.json" in done.err


@pytest.mark.parametrize("size", [0, 1, 1 << 40, (1 << 64) - 1])
def test_a_header_of_weights_that_asks_for_terabytes_is_refused(
    size, foundry, material, model_folder
):
    for path in model_folder.glob("*.safetensors"):
        path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    done = foundry("train", hf_spec(material, model_folder))
    assert (done.code, len(done.lines)) == (2, 1)
    assert "is damaged" in done.err


@pytest.mark.parametrize("name", ["..", "../../x", "/etc", "a/b", ".", "~", "a\\b"])
def test_the_name_of_a_stream_is_no_path(name, tmp_path):
    from foundry_sdk.data.streams import StreamSpec, _local_folder

    cache = tmp_path / "cache"
    folder = _local_folder(name, StreamSpec(remote="s3://bucket/data"), cache).resolve()
    assert folder.parent == (cache / "node-0").resolve()


def test_data_on_its_way_to_a_bucket_lies_where_nobody_else_can_write(tmp_path, monkeypatch):
    from foundry_sdk.data.convert.s3 import S3Folder
    from foundry_sdk.errors import DataError

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = S3Folder(bucket="bucket", prefix="data")
    own = folder.staging().parent.parent
    assert own.parent == tmp_path
    assert own.stat().st_mode & 0o777 == 0o700
    assert folder.staging() == folder.staging()
    own.chmod(0o777)
    with pytest.raises(DataError, match="others can write there"):
        folder.staging()
    own.rmdir()
    (tmp_path / "planted").mkdir(mode=0o700)
    own.symlink_to(tmp_path / "planted")
    with pytest.raises(DataError, match="others can write there"):
        folder.staging()
