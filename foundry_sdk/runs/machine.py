"""What a run ran on: versions, host, state of the working tree."""

import os
import platform
import shutil
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
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
