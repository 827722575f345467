"""Sphinx settings. The reference pages are written from the code before anything is read."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import generate

project = "foundry-sdk"
author = "the foundry-sdk developers"
copyright = "the foundry-sdk developers"  # noqa: A001 - the name that Sphinx reads
version = release = installed_version("foundry-sdk")

extensions = ["myst_parser"]
exclude_patterns: list[str] = []
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = True
html_theme = "furo"
html_title = f"foundry-sdk {version}"
html_show_sourcelink = False

generate.write_all(Path(__file__).parent / "generated")
