"""What a run ran on: versions, host, state of the working tree."""

import os
import platform
import shutil
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Final

_PACKAGES: Final = (
    "foundry-sdk",
    "torch",
    "transformers",
    "accelerate",
    "mosaicml-streaming",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "triton",
    "flash-attn",
    "torchao",
    "peft",
)
_GIT_TIMEOUT_SECONDS: Final = 10


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that shape a result."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    cuda = torch.version.cuda if torch is not None else None
    if cuda is not None:
        versions["cuda"] = cuda
    return versions


def outdated() -> list[str]:
    """Return a line for each installed package that is older than what is needed.

    Older releases of some run code that is hidden in a file of weights (torch before 2.6 and 2.10:
    CVE-2025-32434, CVE-2026-24747), so this is looked at before anything is read.
    """
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.version import InvalidVersion, Version

    lines = []
    try:
        needed = [Requirement(text) for text in requires("foundry-sdk") or ()]
    except (PackageNotFoundError, InvalidRequirement):  # run from a folder that is not installed
        return []
    for requirement in needed:
        oldest = [each for each in requirement.specifier if each.operator == ">="]
        if "extra" in str(requirement.marker or "") or not oldest:
            continue
        try:
            found = version(requirement.name)
            # A build of a coming release ("2.11.0a0") counts as that release.
            release = Version(Version(found).base_version)
        except (PackageNotFoundError, InvalidVersion):
            continue
        if release < Version(oldest[0].version):
            name = requirement.name
            lines.append(
                f"{name} {found} is installed, but {name}{oldest[0]} is needed; "
                f"pip install '{name}{requirement.specifier}'"
            )
    return lines


def host_facts() -> dict[str, Any]:
    """Return host name, process id, platform and number of usable processors."""
    # sched_getaffinity honours taskset and containers; macOS has only the plain count.
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "name": socket.gethostname(),
        "pid": os.getpid(),
        "platform": platform.platform(),
        "processors": len(affinity(0)) if affinity is not None else os.cpu_count(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit, branch and whether tracked files differ; None outside a repository."""
    git = shutil.which("git")
    commit = _git(git, folder, "rev-parse", "HEAD")
    if git is None or commit is None:
        return None
    branch = _git(git, folder, "rev-parse", "--abbrev-ref", "HEAD")
    changes = _git(git, folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "branch": branch, "dirty": None if changes is None else bool(changes)}


def _git(git: str | None, folder: Path, *arguments: str) -> str | None:
    if git is None:
        return None
    try:
        result = subprocess.run(  # noqa: S603 - a fixed program and fixed arguments
            [git, "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
