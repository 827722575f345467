"""Who may import whom: the table of layers as data, held against what ``ast`` sees."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "foundry_sdk"

LAYERS = {
    1: {"errors", "units", "batch", "faultpoints", "lock", "hub"},
    2: {"component", "events", "intervals", "checkpoint"},
    3: {"hookspecs", "models", "data", "losses", "optim", "callbacks", "loggers"},
    4: {"builtin"},
    5: {"plugin"},
    6: {"specs"},
    7: {"training", "runs", "export", "chat", "launch", "testing", "scaffold"},
    8: {"trainer", "pretrainer", "finetuner", "quickstart", "drill"},
    9: {"cli", "__main__"},
}
LAYER = {unit: layer for layer, units in LAYERS.items() for unit in units}
LIGHT = {
    *("errors", "units", "component", "events", "intervals", "hookspecs", "builtin", "plugin"),
    *("specs", "trainer", "pretrainer", "finetuner", "cli", "__init__", "__main__"),
}
"""Units that may not load a heavy library when they are imported."""
SPEC_FILES = {"contract.py", "spec.py", "specs.py"}
HEAVY = {"torch", "transformers", "streaming", "datasets", "accelerate", "matplotlib", "triton"}
NEVER_AT_IMPORT = HEAVY - {"torch", "triton"} | {"boto3", "wandb", "mlflow", "comet_ml", "peft"}
ONLY_IN = {
    "accelerate": {"training/runtime.py", "loggers"},
    "streaming": {"data/mds.py"},
    "cattrs": {"specs"},
    "typer": {"cli"},
}
COPIED = {"export/modeling_foundry_mpt.py"}
"""Files that are copied beside exported models and never imported here."""
NOWHERE = {"pickle", "cPickle", "dill", "argparse", "yaml", "omegaconf"}
MAX_LINES = 400


class Import(NamedTuple):
    file: str
    line: int
    name: str
    at_import: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def imports_of(path: Path) -> Iterator[Import]:
    """Yield the imports that run: those under TYPE_CHECKING do not."""
    file = str(path.relative_to(PACKAGE))

    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(file, child.lineno, alias.name, not inside)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}:{child.lineno}: a relative import"
                yield Import(file, child.lineno, child.module or "", not inside)
                if child.module == "foundry_sdk":
                    for alias in child.names:
                        name = f"foundry_sdk.{alias.name}"
                        yield Import(file, child.lineno, name, not inside)
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports_of(path)]


def unit_of(file: str) -> str:
    return file.split("/", maxsplit=1)[0].removesuffix(".py")


def unit_imported(name: str) -> str | None:
    """Return the unit of ``foundry_sdk.unit.module``; None for others and for the root package."""
    parts = name.split(".")
    return parts[1] if parts[0] == "foundry_sdk" and len(parts) > 1 else None


def test_every_file_is_in_a_layer() -> None:
    units = {unit_of(str(path.relative_to(PACKAGE))) for path in FILES} - {"__init__"}
    assert units - set(LAYER) == set()


def test_imports_go_down_the_layers() -> None:
    wrong = []
    for found in IMPORTS:
        target = unit_imported(found.name)
        unit = unit_of(found.file)
        if target is None or target == "__version__" or unit in {"__init__", target}:
            continue
        if LAYER[target] > LAYER[unit]:
            wrong.append(str(found))
        if LAYER[target] == LAYER[unit] == 3 and target != "hookspecs":
            wrong.append(f"{found} (a sibling folder)")
    assert wrong == []


def test_light_units_load_no_heavy_library() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.at_import
        and found.name.split(".")[0] in HEAVY
        and (unit_of(found.file) in LIGHT or found.file.rsplit("/", 1)[-1] in SPEC_FILES)
    ]
    assert wrong == []


def test_libraries_that_are_optional_or_slow_are_imported_where_they_are_used() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.at_import
        and found.name.split(".")[0] in NEVER_AT_IMPORT
        and found.file not in COPIED
    ]
    assert wrong == []


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_that_one_place_owns_is_imported_there_only(library: str) -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.name.split(".")[0] == library
        and not {found.file, unit_of(found.file)} & ONLY_IN[library]
    ]
    assert wrong == []


def test_what_is_imported_nowhere() -> None:
    assert [str(found) for found in IMPORTS if found.name.split(".")[0] in NOWHERE] == []


def test_the_faces_import_the_training_inside_their_methods() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.at_import
        and found.file in {"trainer.py", "pretrainer.py", "finetuner.py"}
        and LAYER.get(unit_imported(found.name) or "", 0) == 7
    ]
    assert wrong == []


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the plain calls of a file, but for those that run only where it is a script."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for statement in tree.body:
        if isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield node.func.id, node.lineno


def test_nothing_is_evaluated_and_only_commands_print() -> None:
    wrong = []
    for path in FILES:
        file = str(path.relative_to(PACKAGE))
        forbidden = {"eval", "exec", "__import__", "breakpoint"}
        if unit_of(file) != "cli":
            forbidden = forbidden | {"print"}
        wrong += [f"{file}:{line}: {name}" for name, line in calls(path) if name in forbidden]
    assert wrong == []


def test_no_file_is_long_and_folders_have_empty_inits() -> None:
    long = {
        str(path.relative_to(PACKAGE)): lines
        for path in FILES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}
    names = {path.name for path in FILES}
    assert names & {"utils.py", "common.py", "helpers.py", "base.py"} == set()
