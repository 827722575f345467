"""What the documentation shows works: Python is run, commands and their flags exist."""

import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(
        path
        for folder in ("docs", "examples")
        for path in (ROOT / folder).rglob("*.md")
        if "generated" not in path.parts
    ),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(path.read_text()) if name == language]


def with_blocks(language: str) -> list[Path]:
    return [path for path in PAGES if blocks(path, language)]


def foundry_commands(path: Path) -> Iterator[list[str]]:
    """Yield the arguments of every ``foundry`` command in the page's bash blocks."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for words in simple_commands(line):
                for position, word in enumerate(words):
                    if Path(word).name == "foundry":
                        yield words[position + 1 :]
                        break
                    if words[position : position + 2] == ["-m", "foundry_sdk"]:
                        yield words[position + 2 :]
                        break


def simple_commands(line: str) -> list[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;<>"):
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


@pytest.mark.parametrize("path", with_blocks("python"), ids=lambda path: path.stem)
def test_python_on_the_page_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page are one program, run from top to bottom."""
    monkeypatch.chdir(tmp_path)
    page = types.ModuleType(f"page_{path.stem}")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    text = path.read_text()
    for match in BLOCK.finditer(text):
        if match.group(1) != "python":
            continue
        line = text.count("\n", 0, match.start()) + 1
        source = "\n" * line + match.group(2)
        exec(compile(source, str(path), "exec"), vars(page))  # noqa: S102 - our own pages


@pytest.mark.parametrize("path", with_blocks("bash"), ids=lambda path: path.stem)
def test_commands_on_the_page_exist(path: Path) -> None:
    """Parsing fails for a command, a flag or a choice that is not there."""
    import typer

    from foundry_sdk.cli.main import app

    root = typer.main.get_command(app)
    for arguments in foundry_commands(path):
        parse(root, arguments)


def parse(command: Any, arguments: list[str]) -> None:
    rest = arguments
    while (children := getattr(command, "commands", None)) and rest and rest[0][0] != "-":
        assert rest[0] in children, f"no command {rest[0]!r} in {arguments}"
        command, rest = children[rest[0]], rest[1:]
    if "--help" in rest:
        return
    known = {spelling for p in command.params for spelling in (*p.opts, *p.secondary_opts)}
    for word in rest:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{' '.join(arguments)}: no option {word}"


def test_parsing_sees_a_wrong_flag_and_a_wrong_command() -> None:
    import typer

    from foundry_sdk.cli.main import app

    root = typer.main.get_command(app)
    with pytest.raises(AssertionError, match="no option --nprocs"):
        parse(root, ["train", "pretrain.yaml", "--nprocs", "2"])
    with pytest.raises(AssertionError, match="no command 'convert'"):
        parse(root, ["convert", "json"])


def whole_specs() -> list[tuple[str, str]]:
    """Return the YAML blocks that are whole runs, with their pages."""
    return [
        (path.stem, block)
        for path in PAGES
        for block in blocks(path, "yaml")
        if re.search(r"^max_duration:", block, re.MULTILINE)
    ]


@pytest.mark.parametrize(("page", "text"), whole_specs(), ids=lambda value: value[:20])
def test_whole_specs_on_the_page_are_right(page: str, text: str, tmp_path: Path) -> None:
    from foundry_sdk.finetuner import trainer_from_yaml

    file = tmp_path / f"{page}.yaml"
    file.write_text(text)
    assert trainer_from_yaml(file).notices == ()


def test_pages_are_found() -> None:
    """The checks above would pass if they saw nothing."""
    assert len(with_blocks("python")) >= 4
    assert sum(len(list(foundry_commands(path))) for path in PAGES) >= 10
    assert whole_specs()
