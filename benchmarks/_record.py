"""Write a benchmark's rows with all that is needed to compare them with another run's."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("results")


def write(name: str, rows: list[dict[str, Any]], folder: Path | None = None) -> Path:
    """Write ``NAME-DEVICE.json`` into ``folder`` (default: ``results``) and return its path.

    The commit is that of the working tree, with ``+`` where it was changed; a copy without git
    takes it from the environment variable ``FOUNDRY_COMMIT``.
    """
    device = device_name()
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    path = (folder or FOLDER) / f"{name}-{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "device": device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "triton")},
        "cores": os.cpu_count(),
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def device_name() -> str:
    """Return the GPU's name, or the processor's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    if information.exists():
        match = re.search(r"model name\s*:\s*(.+)", information.read_text(encoding="utf-8"))
        if match:
            return match.group(1).strip()
    return platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """Return the installed version, None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the commit that is measured, None where it is not known."""
    root = Path(__file__).parent
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FOUNDRY_COMMIT")
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(  # noqa: S603 - fixed arguments
        ["git", *arguments],  # noqa: S607 - the user's git
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    return result.stdout.strip()
