"""The whole quickstart, and then each of its steps by hand, as a user would."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PNG = b"\x89PNG\r\n\x1a\n"


def run(*command: str, cwd: Path) -> str:
    """Run a command of this environment; return what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path},
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
    assert len(places) == 7
    for place in places:
        assert (folder.parent / place).exists(), place


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
