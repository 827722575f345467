"""Pairs written out by hand, and the whole standard library against its own syntax trees."""

import ast
import json
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
from foundry_sdk_code_instruct import documented_functions, mine
from foundry_sdk_code_instruct.preprocessor import CodeInstructSpec

from foundry_sdk.data.contract import PreprocessorSpec
from foundry_sdk.errors import DataError
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.testing import check_component

MODULE = '''\
import math


def bare(x):
    return x


@decorated
def area(radius: float) -> float:  # of a circle
    """Return the area.

    In square metres.
    """
    # pi is enough
    return math.pi * radius**2


def only_words():
    """Say nothing."""


def squeezed(): "In one line."; return 1


async def later(x):
    r"""Wait: \\d."""
    await x


class Stack:
    """A stack."""

    def push(self, item):
        """Add ``item`` on top."""
        self.items.append(item)

        def inner():
            """Not this."""
            return 1

    def text(self):
        """Return lines that begin at the margin."""
        return """
not indented
"""
'''
AREA = """\
@decorated
def area(radius: float) -> float:  # of a circle
    # pi is enough
    return math.pi * radius**2
"""


def test_functions_of_a_module() -> None:
    found = {each.name: each for each in documented_functions(MODULE)}
    assert list(found) == ["area", "later"]
    assert found["area"].docstring == "Return the area.\n\nIn square metres."
    assert found["area"].code == AREA
    assert found["later"].docstring == "Wait: \\d."
    assert found["later"].code == "async def later(x):\n    await x\n"


def test_methods_and_texts_that_would_change() -> None:
    found = {each.name: each for each in documented_functions(MODULE, methods=True)}
    assert list(found) == ["area", "later", "Stack.push"]
    assert found["Stack.push"].code.startswith("def push(self, item):\n    self.items.append(item)")


def test_bytes_and_characters_are_not_mixed_up() -> None:
    source = 'def f():\n    """Größe in µm."""  # ä\n    return "é"\n'
    [found] = documented_functions(source)
    assert found.docstring == "Größe in µm."
    assert found.code == 'def f():\n    return "é"\n'


def test_the_preprocessor_conforms() -> None:
    check_component(
        CodeInstructSpec,
        row={"source": MODULE, "id": 1},
        wrong_rows=[{"text": "def f(:"}, {"text": "x = 1"}, {"source": None}, {"text": "\0"}],
    )
    check_component(CodeInstructSpec(template="# {name}: {docstring}\n"), row={"text": MODULE})


def test_an_example_of_an_indented_function() -> None:
    row = {"text": textwrap.indent('def one():\n    """Return {name}."""\n    return 1\n', "    ")}
    assert CodeInstructSpec(template="# {name}: {docstring}\n").build()(row) == {
        "prompt": "# one: Return {name}.\n",
        "response": "def one():\n    return 1\n",
    }
    with pytest.raises(ValueError, match=r"template must have \{docstring\}"):
        CodeInstructSpec(template="Write a function.")


def test_mining_is_sorted_unique_and_bounded(tmp_path: Path) -> None:
    for name, text in {
        "b.py": MODULE,
        "a/a.py": MODULE,
        "tests/t.py": MODULE.replace("area", "tested"),
        "broken.py": "def f(:",
        "latin.py": "# coding: latin-1\ndef g():\n    '''Gr\xf6\xdfe.'''\n    return 1\n",
    }.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
    out = tmp_path / "new" / "pairs.jsonl"
    mined = mine(tmp_path / "src", out)
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert (mined.pairs, mined.files, mined.unreadable) == (3, 4, ("broken.py",))
    assert [row["origin"] for row in rows] == ["a/a.py:area", "a/a.py:later", "latin.py:g"]
    assert rows[0]["response"] == AREA
    assert "Größe." in rows[2]["prompt"]
    first = out.read_bytes()
    mine(tmp_path / "src", out)
    assert out.read_bytes() == first
    assert mine(tmp_path / "src", out, max_pairs=1).pairs == 1
    assert mine(tmp_path / "src", out, max_characters=120).pairs == 2
    with pytest.raises(DataError, match="docstring and at most 1 characters in 4 Python"):
        mine(tmp_path / "src", out, max_characters=1)
    with pytest.raises(DataError, match=r"no file \*\.py"):
        mine(tmp_path / "new", out)


def test_mining_reports_and_reads_other_names(tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt", "three.py"):
        (tmp_path / name).write_text(MODULE)
    heard: list[tuple[int, int]] = []
    mined = mine(
        tmp_path,
        tmp_path / "pairs.jsonl",
        pattern="*.txt",
        report=lambda done, total: heard.append((done, total)),
    )
    assert (mined.pairs, mined.files) == (2, 2)
    assert heard == [(0, 2), (1, 2), (2, 2)]


def test_the_command_line_mines_the_same(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("def f(:")
    mine(tmp_path, tmp_path / "expected.jsonl", methods=True, max_characters=200)

    def command(*options: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "foundry_sdk_code_instruct"]
        return subprocess.run(  # noqa: S603
            [*program, str(tmp_path), str(tmp_path / "pairs.jsonl"), *options],
            capture_output=True,
            text=True,
            check=False,
        )

    done = command("--methods", "--max-characters", "200")
    assert done.returncode == 0, done.stderr
    assert "3 pairs from 2 files, 1 of them no Python" in done.stdout.replace("\n", " ")
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "expected.jsonl").read_bytes()
    failed = command("--pattern", "*.pyx")
    assert failed.returncode == 2
    assert failed.stderr == f"error: {tmp_path}: no file *.pyx in it\n"
    assert command("--template", "Write something.").returncode == 2


def test_the_standard_library_gives_many_pairs_that_are_python(tmp_path: Path) -> None:
    source = Path(sysconfig.get_path("stdlib"))
    small = tmp_path / "stdlib"
    small.mkdir()
    for path in sorted(source.glob("*.py"))[:80]:
        (small / path.name).write_bytes(path.read_bytes())
    mined = mine(small, tmp_path / "pairs.jsonl", methods=True)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").open(encoding="utf-8")]
    assert mined.pairs == len(rows) > 500
    for row in rows:
        [function] = ast.parse(row["response"]).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        file, name = row["origin"].split(":")
        assert function.name == name.rsplit(".", 1)[-1]
        assert f"def {function.name}" in (small / file).read_text("utf-8")


def test_the_installed_plugin_is_found() -> None:
    catalog = PluginHost.from_environment({"FOUNDRY_PLUGINS": "code_instruct"}).catalog()
    assert catalog.find(PreprocessorSpec, "code_instruct") is CodeInstructSpec
