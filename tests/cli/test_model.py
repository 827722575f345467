"""``foundry export`` and ``foundry generate`` over what a run leaves behind."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from foundry_sdk.checkpoint.ranks import SoloRanks
from foundry_sdk.checkpoint.state import model_and_optimizer_tensors
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.cli.main import main
from foundry_sdk.models.mpt.options import AttentionSpec
from foundry_sdk.models.mpt.spec import MPTSpec


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Foundry = Callable[..., Done]


@pytest.fixture
def foundry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Foundry:
    """Return a function that runs ``foundry ARGUMENTS`` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Done(code or 0, *capfd.readouterr())

    return call


@pytest.fixture
def run(tmp_path: Path) -> Path:
    data = os.environ.get("FOUNDRY_TEST_DATA")
    if data is None:
        pytest.skip("FOUNDRY_TEST_DATA does not name the folder with gpt-neox-20b/")
    spec = MPTSpec(
        d_model=16,
        n_heads=2,
        n_layers=1,
        max_seq_len=32,
        attn_config=AttentionSpec(attn_impl="torch"),
    )
    model = spec.build(device="cpu")
    model.init_weights(5)
    folder = tmp_path / "run"
    folder.mkdir()
    tokenizer = {"name": f"{data}/gpt-neox-20b", "kwargs": {}}
    (folder / "spec.yaml").write_text(json.dumps({"model": model.config(), "tokenizer": tokenizer}))
    store = CheckpointStore(folder / "checkpoints", SoloRanks())
    tensors, _ = model_and_optimizer_tensors(model)
    store.save(1, tensors, {"model": model.config()}, {})
    store.close()
    return folder


def test_an_export_writes_what_its_run_writes(foundry: Foundry, run: Path) -> None:
    exported = foundry("export", str(run), "exported")
    assert exported.returncode == 0, exported.stderr
    assert "GPT2LMHeadModel" in exported.stdout
    written = [
        foundry("generate", str(where), "-p", "Once upon", "--max-new-tokens", "8")
        for where in (run, run / "checkpoints" / "step-000001", run.parent / "exported")
    ]
    assert [done.returncode for done in written] == [0, 0, 0], written[-1].stderr
    assert len({done.stdout for done in written}) == 1
    assert written[0].stdout.startswith("Once upon")
    assert len(written[0].stdout) > len("Once upon\n")


def test_a_seed_draws_the_same_text_again(foundry: Foundry, run: Path) -> None:
    options = ("generate", str(run), "-p", "A", "--temperature", "1", "--max-new-tokens", "6")
    first, again, other = (foundry(*options, "--seed", seed) for seed in ("1", "1", "2"))
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    assert first.stdout != other.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "RUN", "-p", "a", "--top-k", "3"), "need a temperature above 0"),
        (("generate", "RUN", "-p", "word " * 64), "the model takes 32"),
        (("generate", "nowhere", "-p", "a"), "no such file or folder"),
        (("export", "RUN", "RUN"), "already holds something"),
        (("export", "RUN", "out", "--precision", "int8"), "int8"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_few_lines(
    foundry: Foundry, run: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = foundry(*(str(run) if word == "RUN" else word for word in arguments))
    assert done.returncode != 0
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_checkpoint_is_not_exported(foundry: Foundry, run: Path) -> None:
    (file,) = (run / "checkpoints" / "step-000001").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    done = foundry("export", str(run), "out")
    assert done.returncode == 2
    assert file.name in done.stderr
    assert not (run.parent / "out").exists()


def test_the_exported_weights_are_the_runs(foundry: Foundry, run: Path) -> None:
    from safetensors.torch import load_file

    assert foundry("export", str(run), "out", "--precision", "bf16").returncode == 0
    model = MPTSpec(d_model=16, n_heads=2, n_layers=1, max_seq_len=32).build(device="cpu")
    model.init_weights(5)
    written = load_file(run.parent / "out" / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(written, model.transformer.wte.weight.detach().to(torch.bfloat16))
