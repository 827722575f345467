"""Running the command line as a user does, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Foundry = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def foundry(tmp_path: Path) -> Foundry:
    """Return a function that runs ``foundry ARGUMENTS`` in an empty folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FOUNDRY_")}
        return subprocess.run(
            [sys.executable, "-m", "foundry_sdk", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**inherited, "COLUMNS": "100", "NO_COLOR": "1", **environment},
            timeout=120,
        )

    return run
