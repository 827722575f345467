"""Writes the reference pages: specs and components, the command line, measured speed, pictures.

All of it is read from the code and from ``benchmarks/results``; nothing is listed here by name.
"""

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pictures
from templates import preprocessor_templates

from foundry_sdk.component import ComponentSpec
from foundry_sdk.drill.report import markdown
from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.specs import legacy
from foundry_sdk.specs.run import PretrainSpec

_VERSIONS = ("python", "torch", "transformers", "triton")
DRILLS = "drill-*.json"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def write_all(folder: Path) -> None:
    """Write every generated page into ``folder``; a page that did not change keeps its time."""
    folder.mkdir(exist_ok=True)
    catalog = PluginHost.load([]).catalog()
    pages = {
        "specs.md": specs_page(catalog),
        "cli.md": cli_page(),
        "legacy.inc": legacy_tables(),
        "preprocessors.inc": preprocessor_templates(catalog),
        "results.inc": results_table(RESULTS),
        "drill.inc": drill_tables(RESULTS),
        **pictures.pictures(),
    }
    for left_over in set(folder.iterdir()) - {folder / name for name in pages}:
        left_over.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


# --- specs ---


def specs_page(catalog: Catalog) -> str:
    """Return the page of the run's spec, of each family, and of the values inside them."""
    seen: list[type] = []
    parts = [
        "# Spec reference\n",
        "Written from the code. YAML keys are the field names; a component is a mapping with its "
        "kind as `name` and its fields beside it. `callbacks` and `loggers` are mappings from "
        "kind to fields. A field without a default is required.\n",
        "## A run\n",
        "`PretrainSpec` and `FinetuneSpec` have the same fields; a run is a finetuning one where "
        "its `train_loader` is `finetuning`.\n",
        _class_body(PretrainSpec, seen),
    ]
    for family in catalog.families():
        parts.append(f"## {family.capitalize()} components\n")
        for (name, kind), entry in sorted(catalog.entries.items()):
            if name == family:
                parts.append(f"### `{kind}`\n")
                parts.append(_class_body(entry.component, seen))
    parts.append("## Values inside them\n")
    written: set[type] = set()
    while waiting := [cls for cls in seen if cls not in written]:
        for cls in sorted(waiting, key=lambda cls: cls.__name__):
            written.add(cls)
            parts += [f"### `{cls.__name__}`\n", _class_body(cls, seen)]
    return "\n".join(parts)


def _class_body(cls: type, seen: list[type]) -> str:
    """Return a class's summary and the table of its fields; note nested specs in ``seen``."""
    doc = inspect.cleandoc(cls.__doc__ or "") if "__doc__" in vars(cls) else ""
    about, said = _docstring(doc)
    hints = typing.get_type_hints(cls)
    rows = []
    for field in attrs.fields(cls):
        for nested in _nested(hints[field.name]):
            if nested not in seen:
                seen.append(nested)
        meaning = said.get(field.name) or _inherited(cls, field.name)
        cells = (f"`{field.name}`", _type(hints[field.name]), _default(field), meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    where = f"Python: `{cls.__module__}.{cls.__qualname__}`\n"
    if not rows:
        return f"{about}\n\n{where}\nIt has no fields.\n"
    head = "| Field | Type | Default | |\n|---|---|---|---|"
    return f"{about}\n\n{where}\n{head}\n" + "\n".join(rows) + "\n"


def _docstring(doc: str) -> tuple[str, dict[str, str]]:
    """Split a Google-style docstring into its text and what ``Attributes:`` says by name."""
    text, _, rest = doc.partition("\nAttributes:\n")
    said: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines():
        if line.strip() and not line.startswith(" "):
            break
        if match := re.match(r" {4}(\w[\w, `]*): (.*)", line):
            names = [name.strip(" `") for name in match.group(1).split(",")]
            said |= dict.fromkeys(names, match.group(2))
        elif line.strip():
            said |= {name: f"{said[name]} {line.strip()}" for name in names}
    return _markdown(text.strip()), {name: _markdown(text) for name, text in said.items()}


def _markdown(text: str) -> str:
    return text.replace("``", "`").replace("::\n", ":\n")


def _inherited(cls: type, name: str) -> str:
    for base in cls.__mro__[1:]:
        said = _docstring(inspect.cleandoc(vars(base).get("__doc__") or ""))[1]
        if name in said:
            return said[name]
    return ""


def _nested(hint: Any) -> Iterator[type]:
    """Yield the attrs classes in a type that are values rather than components."""
    if attrs.has(hint):
        if not issubclass(hint, ComponentSpec):
            yield hint
        return
    for argument in typing.get_args(hint):
        yield from _nested(argument)


def _type(hint: Any) -> str:
    """Return a type as YAML's reader thinks of it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is not None:
        return _generic(origin, arguments)
    if isinstance(hint, type) and issubclass(hint, ComponentSpec):
        return f"{hint.family} component"
    if attrs.has(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    if hint is type(None):
        return "null"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _generic(origin: Any, arguments: tuple[Any, ...]) -> str:
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if issubclass(origin, Mapping):
        return "mapping"
    inner = [_type(argument) for argument in arguments if argument is not Ellipsis]
    return f"({', '.join(inner)})" if len(inner) > 1 else f"list of {inner[0]}"


def _default(field: "attrs.Attribute[Any]") -> str:
    if field.default is attrs.NOTHING:
        return "required"
    value = field.default
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        if value.takes_self:
            return "made of the other fields"
        value = value.factory()
        if attrs.has(type(value)) and len(str(value)) > 20:
            return "its own defaults"
    return "null" if value is None else f"`{value}`"


# --- LLM Foundry's keys ---


def legacy_tables() -> str:
    """Return what becomes of LLM Foundry's keys that have no field here."""
    sections = {
        "": legacy.TOP_LEVEL,
        "fsdp_config.": legacy.FSDP,
        "algorithms.": legacy.ALGORITHMS,
        "compile_config.": legacy.COMPILE,
    }
    noticed, refused = [], []
    for prefix, keys in sections.items():
        for key, rule in sorted(keys.items()):
            if rule.notice:
                noticed.append(f"| `{prefix}{key}` | {rule.notice.partition(': ')[2]} |")
            elif rule.refusal:
                fine = ", ".join(f"`{_yaml(value)}`" for value in rule.neutral)
                why = rule.refusal.removeprefix("not supported here").removeprefix("; ")
                refused.append(f"| `{prefix}{key}` | {fine} | {why} |")
    for (family, kind), instead in sorted(legacy.COMPONENTS.items()):
        refused.append(f"| {family} `{kind}` | | {instead} |")
    accepted = "### Accepted without effect, with a line that says so\n\n| Key | Why |\n|---|---|\n"
    errors = "\n\n### Refused\n\n| Key | Accepted values | Instead |\n|---|---|---|\n"
    return accepted + "\n".join(noticed) + errors + "\n".join(refused) + "\n"


def _yaml(value: object) -> str:
    return "null" if value is None else json.dumps(value)


# --- the command line ---


def cli_page() -> str:
    """Return the help of every command, as ``--help`` has it."""
    import typer

    from foundry_sdk.cli.main import app

    root = typer.main.get_command(app)
    parts = ["# Command line\n", "Written from the commands themselves.\n"]

    def walk(command: Any, path: tuple[str, ...]) -> None:
        # typer has a copy of click of its own, so a group is known by what it has.
        children = getattr(command, "commands", None)
        if children is None:
            parts.append(_command(command, typer.Context(command, info_name=path[-1]), path))
            return
        for name, child in children.items():
            if not child.hidden:
                walk(child, (*path, name))

    walk(root, ("foundry",))
    return "\n".join(parts)


def _command(command: Any, context: Any, path: tuple[str, ...]) -> str:
    usage = " ".join(command.collect_usage_pieces(context))
    help_text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    rows = []
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        is_option = parameter.param_type_name == "option"
        spellings = [*parameter.opts, *parameter.secondary_opts]
        shown = ", ".join(f"`{s}`" for s in spellings) if is_option else f"`{parameter.name}`"
        default = parameter.default
        unset = default is None or callable(default) or "UNSET" in repr(default)
        told = "required" if parameter.required else "" if unset else f"`{default}`"
        meaning = " ".join((getattr(parameter, "help", None) or "").split())
        rows.append(f"| {shown} | {told} | {meaning} |".replace("\n", " "))
    table = "| | Default | |\n|---|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
    name = " ".join(path)
    summary, _, rest = help_text.partition("\n\n")
    more = f"```text\n{rest}\n```\n\n" if rest else ""
    return f"## `{name}`\n\n{summary}\n\n```text\n{name} {usage}\n```\n\n{table}\n{more}"


# --- measured speed ---


def results_table(folder: Path) -> str:
    """Return one table per file that a benchmark wrote."""
    parts = []
    for path in sorted(set(folder.glob("*.json")) - set(folder.glob(DRILLS))):
        result = json.loads(path.read_text())
        rows = result["rows"]
        versions = [f"{name} {result[name]}" for name in _VERSIONS if result.get(name)]
        commit = (result.get("commit") or "")[:12]
        made_by = f"`benchmarks/{result['benchmark']}.py`, {result['date'][:10]}, commit {commit}"
        parts.append(f"## {result['benchmark']} on {result['device']}\n")
        parts.append(f"{made_by}, {', '.join(versions)}.\n")
        columns = list(dict.fromkeys(key for row in rows for key in row))
        parts.append("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
        parts += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
        parts.append("")
    return "\n".join(parts) or "Nothing has been measured yet.\n"


def drill_tables(folder: Path) -> str:
    """Return a table for each drill.json that was put there."""
    return "\n".join(markdown(json.loads(path.read_text())) for path in sorted(folder.glob(DRILLS)))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_cell(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_cell(inner) for inner in value)
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
