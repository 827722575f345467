"""The package's public names: they resolve, are typed, and cost nothing until used."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import foundry_sdk

ROOT = Path(__file__).parents[1]
NAMES = [name for name in dir(foundry_sdk) if not name.startswith("__")]
HEAVY = ("torch", "transformers", "streaming", "datasets", "accelerate", "matplotlib")


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_resolves_to_what_is_called_so(name: str) -> None:
    found = getattr(foundry_sdk, name)
    assert found is not None
    assert getattr(found, "__name__", name).rpartition(".")[2] == name or not isinstance(
        found, type
    )


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse((ROOT / "foundry_sdk" / "__init__.py").read_text(encoding="utf-8"))
    [guarded] = [node for node in tree.body if isinstance(node, ast.If)]
    seen: dict[str, set[str]] = {}
    for node in guarded.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.name == alias.asname
            seen.setdefault(str(node.module), set()).add(alias.name)
    assert seen == {home: set(names) for home, names in foundry_sdk._HOMES.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Pretraner'"):
        _ = foundry_sdk.Pretraner


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert foundry_sdk.__version__ == project["version"]


def loaded_after(code: str) -> set[str]:
    code += f"\nimport sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(ast.literal_eval(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import foundry_sdk; dir(foundry_sdk)",
        "from foundry_sdk import PretrainSpec, MPTSpec, TextDataSpec, DecoupledLionWSpec",
        "from foundry_sdk import Pretrainer, TokenizerSpec, CosineWithWarmupSpec, SpeedMonitorSpec",
        "import foundry_sdk.cli.main",
        "from foundry_sdk import PluginHost; PluginHost.from_environment({}).catalog()",
    ],
)
def test_importing_loads_no_heavy_library(code: str) -> None:
    assert loaded_after(code) == set()


def test_a_spec_file_is_checked_without_a_heavy_library() -> None:
    path = ROOT / "tests" / "specs" / "data" / "llm-foundry-mpt-125m.yaml"
    code = f"from foundry_sdk import PretrainSpec; PretrainSpec.from_yaml({str(path)!r})"
    assert loaded_after(code) == set()
