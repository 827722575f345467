import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foundry_sdk.data.contract import TokenizerSpec
from foundry_sdk.data.tokenizer import UNLIMITED_LENGTH, fingerprint, load_tokenizer
from foundry_sdk.errors import DataError


def load(folder, **kwargs):
    return load_tokenizer(TokenizerSpec(name=str(folder), kwargs=kwargs))


def test_a_folder_is_loaded_without_the_network(bpe_folder, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected"))
    tokenizer = load(bpe_folder)
    assert tokenizer("the cat").input_ids == tokenizer.backend_tokenizer.encode("the cat").ids
    assert tokenizer.model_max_length == UNLIMITED_LENGTH


def test_kwargs_are_passed_on(bpe_folder):
    assert load(bpe_folder, model_max_length=77).model_max_length == 77


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(DataError, match="there is no folder") as error:
        load(name)
    assert repr(name) in str(error.value)


def test_a_hub_name_without_the_network_says_so(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="network is disabled or the name does not exist"):
        load("no-owner/no-tokenizer")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no tokenizer"):
        load(tmp_path)


def test_a_tokenizer_without_end_of_sequence_is_refused(bpe_folder, tmp_path):
    folder = Path(shutil.copytree(bpe_folder, tmp_path / "copy"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            values = json.loads((folder / name).read_text())
            values.pop("eos_token", None)
            (folder / name).write_text(json.dumps(values))
    with pytest.raises(DataError, match="no end-of-sequence token"):
        load(folder)


def test_code_of_a_repository_is_not_run(bpe_folder):
    with pytest.raises(DataError, match="trust_remote_code"):
        load(bpe_folder, trust_remote_code=True)


def test_the_fingerprint_does_not_depend_on_the_place_or_the_last_call(bpe_folder, tmp_path):
    moved = load(shutil.copytree(bpe_folder, tmp_path / "elsewhere"))
    before = fingerprint(moved)
    moved("the cat sat", truncation=True, max_length=2, padding="max_length")
    assert fingerprint(moved) == before == fingerprint(load(bpe_folder))
    assert len(before) == 64


def test_the_fingerprint_leaves_the_tokenizer_as_it_was(bpe_folder):
    tokenizer = load(bpe_folder)
    tokenizer("the cat sat", truncation=True, max_length=2, padding="max_length")
    backend = tokenizer.backend_tokenizer
    settings = (backend.truncation, backend.padding)
    fingerprint(tokenizer)
    assert (backend.truncation, backend.padding) == settings


def change(content, what):
    if what == "merges":
        content["model"]["merges"].reverse()
    elif what == "vocabulary":
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    elif what == "normalizer":
        content["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize("what", ["merges", "vocabulary", "normalizer"])
def test_another_tokenizer_has_another_fingerprint(bpe_folder, tmp_path, what):
    folder = Path(shutil.copytree(bpe_folder, tmp_path / "other"))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content, what)
    path.write_text(json.dumps(content))
    assert fingerprint(load(folder)) != fingerprint(load(bpe_folder))


def test_an_added_token_changes_the_fingerprint(bpe_folder):
    tokenizer = load(bpe_folder)
    tokenizer.add_tokens(["zebra"])
    assert fingerprint(tokenizer) != fingerprint(load(bpe_folder))


def test_the_fingerprint_is_the_same_in_another_process(bpe_folder):
    code = (
        "import sys; from foundry_sdk.data.contract import TokenizerSpec; "
        "from foundry_sdk.data.tokenizer import fingerprint, load_tokenizer; "
        "print(fingerprint(load_tokenizer(TokenizerSpec(name=sys.argv[1]))))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    output = subprocess.run(
        [sys.executable, "-c", code, str(bpe_folder)],
        capture_output=True, text=True, check=True, env=environment,
    ).stdout  # fmt: skip
    assert output.strip() == fingerprint(load(bpe_folder))


def test_the_fingerprint_of_gpt_neox_does_not_depend_on_the_version_of_transformers():
    data = os.environ.get("FOUNDRY_TEST_DATA")
    if not data:
        pytest.skip("FOUNDRY_TEST_DATA is not set")
    # The same value under transformers 4.57 and 5.x, which build this tokenizer differently.
    assert fingerprint(load(Path(data) / "gpt-neox-20b")) == (
        "9d580dee073e856ac0f17b7e0a437b3fedaa2a492e43b6d24431c1c6d584beb2"
    )
