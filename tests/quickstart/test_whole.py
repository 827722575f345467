"""The whole quickstart, and then each of its steps by hand, as a user would."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.quickstart.pairs import missing_plugin

pytestmark = pytest.mark.slow
MISSING = missing_plugin(PluginHost.from_environment().catalog())
needs_plugin = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
PNG = b"\x89PNG\r\n\x1a\n"


def run(*command: str, cwd: Path, **env: str) -> str:
    """Run a command of this environment; return what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **env, "PATH": path},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("quickstart")
    output = run("foundry", "quickstart", "--quick", "--out", "out", cwd=folder)
    return folder / "out", output


def last_loss(run_dir: Path) -> float:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss/train/total"] for line in lines if "loss/train/total" in line][-1]


def test_it_trains_a_model(made: tuple[Path, str]) -> None:
    """Better than guessing by the frequency of bytes, far better than evenly among tokens."""
    folder, _ = made
    assert last_loss(folder / "runs" / "quickstart") < math.log(2048) - 2
    assert (folder / "runs" / "quickstart" / "loss.png").read_bytes().startswith(PNG)


def test_it_says_where_everything_lies(made: tuple[Path, str]) -> None:
    folder, output = made
    section = output.split("Where everything lies")[1].split("Each step by hand")[0]
    places = re.findall(r"^(out/\S+)", section, re.MULTILINE)
    assert len(places) == (7 if MISSING else 10)
    for place in places:
        assert (folder.parent / place).exists(), place


@needs_plugin
def test_finetuning_changes_what_it_answers(made: tuple[Path, str]) -> None:
    folder, output = made
    found = re.search(r"per token: ([\d.]+) before, ([\d.]+) after\n", output)
    assert found is not None
    before, after = map(float, found.groups())
    assert after < before - 0.2
    found = re.search(r"function, of (\d+): (\d+) before, (\d+) after\n", output)
    assert found is not None
    asked, before, after = map(int, found.groups())
    assert before < after <= asked
    assert output.count("before finetuning:\n") == 3
    assert (folder / "runs" / "functions" / "loss.png").read_bytes().startswith(PNG)


def test_without_the_plugin_it_says_so(tmp_path: Path) -> None:
    output = run(
        "foundry", "quickstart", "--quick", "--data-only", "--out", "out",
        cwd=tmp_path, FOUNDRY_PLUGINS="",
    )  # fmt: skip
    lines = [line for line in output.splitlines() if line.startswith("Finetuning is skipped: ")]
    assert len(lines) == 2
    assert "foundry-sdk-code-instruct" in lines[0]
    assert not (tmp_path / "out" / "pairs").exists()


def test_transformers_alone_loads_the_export(made: tuple[Path, str]) -> None:
    folder, _ = made
    code = (
        "import sys\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained('model')\n"
        "tokenizer = AutoTokenizer.from_pretrained('model')\n"
        "assert not [name for name in sys.modules if name.startswith('foundry_sdk')]\n"
        "print(type(model).__name__, len(tokenizer))\n"
    )
    assert run(sys.executable, "-c", code, cwd=folder).split() == ["MptForCausalLM", "2048"]


def test_the_steps_by_hand_do_the_same(made: tuple[Path, str]) -> None:
    folder, output = made
    by_hand = folder / "by-hand"
    commands = (by_hand / "commands.sh").read_text()
    for line in commands.splitlines()[4:]:
        assert line in output.splitlines() or not line
    printed = run("bash", "commands.sh", cwd=by_hand)
    assert printed
    for split in ("train", "val"):
        for file in (folder / "data" / split).iterdir():
            if file.suffix != ".json":
                assert (by_hand / "data" / split / file.name).read_bytes() == file.read_bytes()
    assert last_loss(by_hand / "runs" / "quickstart") == pytest.approx(
        last_loss(folder / "runs" / "quickstart"), rel=1e-4
    )
    assert (by_hand / "model" / "certificate.json").is_file()
    if MISSING is None:
        assert (by_hand / "pairs" / "val.jsonl").read_bytes() == (
            folder / "pairs" / "val.jsonl"
        ).read_bytes()
        assert (by_hand / "finetuned" / "certificate.json").is_file()
        assert last_loss(by_hand / "runs" / "functions") == pytest.approx(
            last_loss(folder / "runs" / "functions"), rel=1e-3
        )
