"""The project's metadata, its locks and its first page agree with each other and the code."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from foundry_sdk.quickstart.pairs import PLUGIN

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = [ROOT / "locks" / f"cpu-transformers{major}.txt" for major in (4, 5)]
# Import names that are loaded only when a spec asks for them, with the extra that brings them.
OPTIONAL = {
    "torchao": "fp8",
    "flash_attn": "flash",
    "peft": "lora",
    "tensorboard": "tracking",
    "wandb": "tracking",
    "mlflow": "tracking",
    "comet_ml": "tracking",
    "boto3": "s3",
    "botocore": "s3",
    "pytest": "dev",
}
# Part of torch's CUDA builds, and used only with one.
OF_TORCH = {"triton"}


def pins(lock: Path) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in lock.read_text().splitlines():
        requirement = Requirement(line)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def bash_blocks(path: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def third_party_imports() -> dict[str, set[str]]:
    """Return each imported top-level name outside the standard library, with its files."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "foundry_sdk").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
            else:
                continue
            for name in (name.split(".")[0] for name in names):
                if name not in sys.stdlib_module_names and name not in {"foundry_sdk", *OF_TORCH}:
                    found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_import_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    installed = packages_distributions()
    for name, files in third_party_imports().items():
        if name in OPTIONAL:
            assert OPTIONAL[name] in PROJECT["optional-dependencies"]
            continue
        owners = {canonicalize_name(owner) for owner in installed.get(name, [name])}
        assert owners & declared, f"{name} of {sorted(files)} is not in pyproject's dependencies"


def test_every_dependency_is_used() -> None:
    # Loaded by name: mosaicml-streaming by the one module that reads MDS; zstd by that library.
    used = {"mosaicml-streaming", "zstd"}
    installed = packages_distributions()
    for name in third_party_imports():
        used |= {canonicalize_name(owner) for owner in installed.get(name, [name])}
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert declared - used == set()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_lock_satisfies_what_the_project_declares(lock: Path) -> None:
    locked = pins(lock)
    for line in PROJECT["dependencies"]:
        wanted = Requirement(line)
        for pin in locked[canonicalize_name(wanted.name)]:
            [version] = [specifier.version for specifier in pin.specifier]
            assert wanted.specifier.contains(version), f"{lock.name}: {pin} is not {wanted}"


@pytest.mark.parametrize("lock", [*LOCKS, ROOT / "locks" / "dev.txt"], ids=lambda lock: lock.stem)
def test_lock_has_exact_versions_of_no_special_build(lock: Path) -> None:
    for requirements in pins(lock).values():
        for pin in requirements:
            assert re.fullmatch(r"==[^+*]+", str(pin.specifier)), pin
            assert pin.url is None, pin
            assert not pin.name.startswith(("nvidia-", "cuda-")), pin


def test_locks_agree_where_they_are_installed_together() -> None:
    tools = pins(ROOT / "locks" / "dev.txt")
    for lock in LOCKS:
        for name, requirements in pins(lock).items():
            if name in tools:
                versions = {pin.specifier for pin in requirements}
                assert versions == {pin.specifier for pin in tools[name]}, name


def test_version_is_the_same_everywhere() -> None:
    import foundry_sdk

    assert foundry_sdk.__version__ == PROJECT["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert released[0] == PROJECT["version"]


def test_readme_has_two_commands_and_ci_runs_the_second() -> None:
    blocks = bash_blocks(ROOT / "README.md")
    install, check = blocks[0], blocks[1]
    [torch] = pins(LOCKS[1])["torch"]
    assert f"pip install {torch}" in install
    assert "locks/cpu-transformers5.txt" in install
    [plugin] = re.findall(r"\./(plugins/\S+)", install)
    assert plugin == f"plugins/{PLUGIN}"
    assert (ROOT / plugin / "pyproject.toml").is_file()
    assert install.rstrip().endswith("foundry quickstart")
    command = re.search(r"awk '(.+)' README.md", (ROOT / ".ci" / "run").read_text())
    assert command is not None
    found = subprocess.run(
        ["awk", command.group(1), str(ROOT / "README.md")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == check


def test_importing_the_package_is_light() -> None:
    heavy = ("torch", "transformers", "streaming", "datasets", "accelerate", "matplotlib", "rich")
    code = f"import sys, foundry_sdk\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
