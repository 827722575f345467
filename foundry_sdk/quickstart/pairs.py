"""Pairs of docstring and function, mined from the text by a plugin, where it is installed."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from foundry_sdk.errors import RunError
from foundry_sdk.quickstart.sizes import Sizes

if TYPE_CHECKING:
    from foundry_sdk.plugin.catalog import Catalog

PLUGIN: Final = "foundry-sdk-code-instruct"
INSTALL: Final = f"pip install --no-deps ./plugins/{PLUGIN}"
_KIND: Final = "code_instruct"
_PROGRAM: Final = "foundry_sdk_code_instruct"


def missing_plugin(catalog: "Catalog") -> str | None:
    """Return why there is no plugin to mine with, in one line, and what helps; None = there is."""
    from foundry_sdk.data.contract import PreprocessorSpec

    if _KIND in catalog.kinds(PreprocessorSpec):
        return None
    for failure in catalog.failures:
        if failure.source.distribution == PLUGIN:
            why = failure.cause or failure.reason
            return f"the plugin {PLUGIN} failed to load: {why}; foundry plugins says more"
    if any(source.distribution == PLUGIN for source in catalog.left_out):
        return f"FOUNDRY_PLUGINS leaves out the plugin {PLUGIN}; add {_KIND} to it"
    return f"the plugin {PLUGIN} is not installed; in a clone of this project: {INSTALL}"


def mining(text: str, out: str, sizes: Sizes) -> list[str]:
    """Return the arguments of ``python`` that mine the folder ``text`` into the file ``out``."""
    options = ["--pattern", "*.txt", "--methods", "--max-characters", str(sizes.pair_characters)]
    return ["-m", _PROGRAM, text, out, *options]


def mine_pairs(folder: Path, sizes: Sizes) -> dict[str, int]:
    """Mine the text in ``folder`` with the plugin's own command; return pairs by split.

    Raises:
        RunError: the command failed; it has said why.
    """
    counts = {}
    for split in ("train", "val"):
        out = folder / "pairs" / f"{split}.jsonl"
        command = [sys.executable, *mining(str(folder / "text" / split), str(out), sizes)]
        # Its standard error is ours: there it draws a bar.
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - our own interpreter
        if done.returncode != 0:
            raise RunError(f"mining pairs failed (exit code {done.returncode}): {command}")
        counts[split] = len(read_pairs(out))
    return counts


def read_pairs(path: Path) -> list[Mapping[str, str]]:
    """Return the pairs of a file, each with ``prompt`` and ``response``."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
