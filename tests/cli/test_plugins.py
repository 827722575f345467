"""``foundry plugins`` with packages installed beside it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Foundry = Callable[..., subprocess.CompletedProcess[str]]

ACME = """\
from foundry_sdk import hookimpl, preprocessor


@preprocessor("acme/tales")
def tales(row):
    "Short tales."
    return {"prompt": "", "response": row["text"]}


@hookimpl
def foundry_components():
    return [tales]
"""


@pytest.fixture
def packages(tmp_path: Path) -> str:
    """Install a working and a broken package into a folder for PYTHONPATH; return the folder."""
    site = tmp_path / "site"
    for name, text in {"acme": ACME, "halfway": "import a_library_nobody_has\n"}.items():
        info = site / f"{name}_plugin-1.4.dist-info"
        info.mkdir(parents=True)
        head = f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.4\n"
        (info / "METADATA").write_text(head)
        (info / "entry_points.txt").write_text(f"[foundry_sdk]\n{name} = {name}_plugin\n")
        (site / f"{name}_plugin.py").write_text(text)
    return str(site)


def test_components_and_failures_are_listed(foundry: Foundry, packages: str) -> None:
    done = foundry("plugins", PYTHONPATH=packages)
    assert done.returncode == 0
    rows = [line.split(maxsplit=4) for line in done.stdout.splitlines()]
    assert ["preprocessor", "acme/tales", "acme-plugin", "1.4", "Short tales."] in rows
    assert any(row[:3] == ["model", "mpt_causal_lm", "foundry-sdk"] for row in rows)
    assert "'halfway' (halfway-plugin 1.4): ModuleNotFoundError: No module named" in done.stdout
    assert "Traceback" not in done.stdout
    detailed = foundry("plugins", "--traceback", PYTHONPATH=packages)
    assert "Traceback (most recent call last)" in detailed.stdout


def test_one_family_only(foundry: Foundry, packages: str) -> None:
    done = foundry("plugins", "--kind", "preprocessor", PYTHONPATH=packages)
    assert "acme/tales" in done.stdout
    assert "mpt_causal_lm" not in done.stdout
    wrong = foundry("plugins", "--kind", "preprocesor", PYTHONPATH=packages)
    assert wrong.returncode == 2
    assert "no component family is named 'preprocesor'; known: " in wrong.stderr


def test_strict_and_allow_list(foundry: Foundry, packages: str) -> None:
    strict = foundry("plugins", PYTHONPATH=packages, FOUNDRY_STRICT_PLUGINS="1")
    assert strict.returncode == 2
    assert "plugin 'halfway' (halfway-plugin 1.4): ModuleNotFoundError" in strict.stderr
    only = foundry("plugins", PYTHONPATH=packages, FOUNDRY_PLUGINS="acme")
    assert "halfway" in only.stdout.partition("Installed, but not listed in FOUNDRY_PLUGINS:")[2]
    assert "Failed plugins" not in only.stdout


def test_a_component_that_is_not_allowed_names_the_value_that_allows_it(
    foundry: Foundry, packages: str, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("model: {name: bigram}\n")
    done = foundry("check", "run.yaml", PYTHONPATH=packages, FOUNDRY_PLUGINS="acme")
    assert done.returncode == 2
    assert "to load, set FOUNDRY_PLUGINS=acme," in done.stderr
    broken = foundry("check", "run.yaml", PYTHONPATH=packages)
    assert "plugin 'halfway' (halfway-plugin 1.4) failed: ModuleNotFoundError" in broken.stderr
