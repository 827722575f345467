"""A new plugin package: component, tests and README, which work before a line is changed."""

import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final, Literal, get_args

import attrs

from foundry_sdk.errors import SpecError
from foundry_sdk.plugin.host import PluginHost

PluginKind = Literal["preprocessor", "optimizer", "loss", "callback", "scheduler", "model"]
KINDS: Final[tuple[PluginKind, ...]] = get_args(PluginKind)

_PREFIX: Final = "foundry-sdk-"
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TEST: Final = "test.py.txt"
_USAGE: Final[dict[PluginKind, tuple[str, str]]] = {
    "preprocessor": (
        "A preprocessor for finetuning data, for foundry-sdk.",
        "In a finetuning spec:\n\n```yaml\ntrain_loader:\n  dataset:\n"
        "    preprocessing_fn: $kind\n```",
    ),
    "optimizer": (
        "An optimizer for foundry-sdk.",
        "In a spec:\n\n```yaml\noptimizer:\n  name: $kind\n  lr: 1.0e-4\n```",
    ),
    "loss": ("A loss for foundry-sdk.", "In a spec:\n\n```yaml\nloss:\n  name: $kind\n```"),
    "callback": (
        "A callback for foundry-sdk.",
        "In a spec:\n\n```yaml\ncallbacks:\n  $kind: {}\n```",
    ),
    "scheduler": (
        "A learning rate schedule for foundry-sdk.",
        "In a spec:\n\n```yaml\nscheduler:\n  name: $kind\n```",
    ),
    "model": ("A model for foundry-sdk.", "In a spec:\n\n```yaml\nmodel:\n  name: $kind\n```"),
}


@attrs.frozen(kw_only=True)
class NewPlugin:
    """What was written.

    Attributes:
        folder: the package.
        component: the kind that YAML names.
        files: relative to the folder, sorted.
    """

    folder: Path
    component: str
    files: tuple[str, ...]


def new_plugin(name: str, *, kind: PluginKind = "preprocessor", out: str | Path = ".") -> NewPlugin:
    """Write the package ``foundry-sdk-NAME`` into a new folder of ``out``.

    Args:
        name: with or without ``foundry-sdk-``: lower-case letters and digits, words joined by
            hyphens. The component is called the same, with underscores.
        kind: family of the component.
        out: existing or new folder.

    Raises:
        SpecError: the name cannot be one, is that of a component of the SDK, or the folder exists.
    """
    if kind not in KINDS:
        raise SpecError(f"new-plugin: kind {kind!r} is not one of {', '.join(KINDS)}")
    words = _checked(name, kind)
    values = {
        "distribution": f"{_PREFIX}{'-'.join(words)}",
        "module": f"{_PREFIX}{'-'.join(words)}".replace("-", "_"),
        "kind": "_".join(words),
        "cls": "".join(word.capitalize() for word in words),
        "family": kind,
    }
    summary, usage = (Template(text).substitute(values) for text in _USAGE[kind])
    folder = Path(out) / values["distribution"]
    written = {
        path: _filled(text, {**values, "summary": summary, "usage": usage})
        for path, text in _templates(kind, values["module"], values["kind"]).items()
    }
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise SpecError(f"new-plugin: {folder} exists; give another name or --out") from error
    for path, text in written.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return NewPlugin(folder=folder, component=values["kind"], files=tuple(sorted(written)))


def _checked(name: str, kind: PluginKind) -> list[str]:
    """Return the words of the name."""
    short = name.lower().replace("_", "-").removeprefix(_PREFIX)
    if not _NAME.fullmatch(short) or name != name.lower():
        raise SpecError(
            f"new-plugin: {name!r} is no name for a package; use lower-case letters and digits, "
            "beginning with a letter, words joined by hyphens, such as 'my-recipes'"
        )
    component = short.replace("-", "_")
    if keyword.iskeyword(component):
        raise SpecError(f"new-plugin: {name!r} is a word of Python; give another name")
    if (kind, component) in PluginHost.load([]).catalog().entries:
        raise SpecError(
            f"new-plugin: {kind} {component!r} is one of foundry-sdk itself, and two of a name "
            "cannot be told apart; give another name"
        )
    return short.split("-")


def _templates(kind: PluginKind, module: str, component: str) -> dict[str, str]:
    """Return the text of each file, by its path in the package."""
    folder = files("foundry_sdk.scaffold") / "templates"
    found = {
        "pyproject.toml": folder / "pyproject.toml.txt",
        "README.md": folder / "README.md.txt",
        f"src/{module}/__init__.py": folder / "init.py.txt",
    }
    for template in (folder / kind).iterdir():
        if template.name == _TEST:
            found[f"tests/test_{component}.py"] = template
        elif template.name.endswith(".py.txt"):
            found[f"src/{module}/{template.name.removesuffix('.txt')}"] = template
    texts = {path: template.read_text(encoding="utf-8") for path, template in found.items()}
    home = "spec" if f"src/{module}/spec.py" in found else kind
    init = f"src/{module}/__init__.py"
    texts[init] = Template(texts[init]).safe_substitute(home=home)
    return {**texts, f"src/{module}/py.typed": ""}


def _filled(text: str, values: dict[str, str]) -> str:
    return Template(text).substitute(values)
