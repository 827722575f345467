"""Packages that are written: installed, tested and looked at by other programs."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from foundry_sdk.errors import SpecError
from foundry_sdk.scaffold.new_plugin import KINDS, PluginKind, new_plugin

ROOT = Path(__file__).parents[2]


def process(*command: str, where: Path, paths: tuple[Path, ...] = ()) -> str:
    """Run this Python with ``paths`` before others; return what it printed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("FOUNDRY_")}
    given = [str(path) for path in (*paths, ROOT)]
    env |= {"PYTHONPATH": os.pathsep.join(given), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        check=False,
        cwd=where,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metadata_of(folder: Path) -> None:
    """Write what an installer would make of the package's pyproject.toml, beside its source."""
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    info = folder / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    [(group, points)] = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[PluginKind, Path]:
    out = tmp_path_factory.mktemp("new") / "plugins"
    return {kind: new_plugin(f"acme-{kind}-2", kind=kind, out=out).folder for kind in KINDS}


def test_the_tests_of_every_kind_pass_at_once(
    packages: dict[PluginKind, Path], tmp_path: Path
) -> None:
    for folder in packages.values():
        metadata_of(folder)
    sources = tuple(folder / "src" for folder in packages.values())
    tests = [str(folder / "tests") for folder in packages.values()]
    arguments = ("pytest", "-v", "-p", "no:cacheprovider", "--import-mode=importlib", *tests)
    told = process(*arguments, where=tmp_path, paths=sources)
    for kind in KINDS:
        assert f"test_acme_{kind}_2.py::test_it_conforms PASSED" in told
        assert f"test_acme_{kind}_2.py::test_the_installed_plugin_is_found PASSED" in told
    listed = process("foundry_sdk", "plugins", where=tmp_path, paths=sources)
    for kind in KINDS:
        assert f"acme_{kind}_2" in listed
    assert "Failed" not in listed


def test_style(packages: dict[PluginKind, Path]) -> None:
    for folder in packages.values():
        process("ruff", "check", "--select", "E,F,I,B,RUF,UP",
                "--no-cache", ".", where=folder)  # fmt: skip
        process("ruff", "format", "--check", "--no-cache", ".", where=folder)


@pytest.mark.slow
def test_types(packages: dict[PluginKind, Path], tmp_path: Path) -> None:
    sources = [str(folder / "src") for folder in packages.values()]
    arguments = ("mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), *sources)
    process(*arguments, where=tmp_path, paths=tuple(map(Path, sources)))


@pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling, which builds, is missing"
)
def test_pip_installs_the_package(tmp_path: Path) -> None:
    made = new_plugin("recipes", out=tmp_path)
    target = tmp_path / "target"
    process(
        *("pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--target", str(target), str(made.folder)),
        where=tmp_path,
    )
    listed = process(
        "foundry_sdk", "plugins", "-k", "preprocessor", where=tmp_path, paths=(target,)
    )
    [line] = [line for line in listed.splitlines() if " recipes " in line]
    assert "foundry-sdk-recipes" in line
    assert "Rows with the columns ``question`` and ``answer``." in line
    process("pytest", where=made.folder, paths=(target,))


def test_what_is_written(tmp_path: Path) -> None:
    made = new_plugin("foundry-sdk-my-recipes", out=tmp_path / "new")
    assert made.folder == tmp_path / "new" / "foundry-sdk-my-recipes"
    assert made.component == "my_recipes"
    assert made.files == (
        "README.md",
        "pyproject.toml",
        "src/foundry_sdk_my_recipes/__init__.py",
        "src/foundry_sdk_my_recipes/preprocessor.py",
        "src/foundry_sdk_my_recipes/py.typed",
        "tests/test_my_recipes.py",
    )
    for file in made.files:
        text = (made.folder / file).read_text("utf-8")
        assert "$" not in text
        assert text == "" or text.endswith("\n")
    assert "class MyRecipesSpec(PreprocessorSpec)" in (made.folder / made.files[3]).read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My-Recipes", "is no name for a package"),
        ("2fast", "beginning with a letter"),
        ("a--b", "is no name"),
        ("../up", "is no name"),
        ("class", "word of Python"),
        ("adamw", "optimizer 'adamw' is one of foundry-sdk itself"),
    ],
)
def test_names_that_are_refused(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=words):
        new_plugin(name, kind="optimizer", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    made = new_plugin("recipes", out=tmp_path)
    (made.folder / "README.md").write_text("mine")
    with pytest.raises(SpecError, match="foundry-sdk-recipes exists"):
        new_plugin("recipes", out=tmp_path)
    assert (made.folder / "README.md").read_text() == "mine"


def test_the_command(tmp_path: Path) -> None:
    told = process(
        "foundry_sdk", "new-plugin", "calm", "--kind", "callback", "--out", "x", where=tmp_path
    )
    assert "x/foundry-sdk-calm/src/foundry_sdk_calm/callback.py" in told
    assert told.rstrip().endswith("pytest")
    assert (tmp_path / "x/foundry-sdk-calm/tests/test_calm.py").is_file()
