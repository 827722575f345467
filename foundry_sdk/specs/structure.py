"""From documents to run specs, with every mistake in one error; and from specs to plain values."""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path as FilePath
from typing import Any, Final, TypeVar

import attrs

from foundry_sdk.component import ComponentSpec
from foundry_sdk.errors import PluginError, SpecError
from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.specs import checks
from foundry_sdk.specs.annotations import as_declared, field_types
from foundry_sdk.specs.converter import Mistakes, SpecConverter, construct
from foundry_sdk.specs.document import Document, load
from foundry_sdk.specs.legacy import translate
from foundry_sdk.specs.places import Path, dotted
from foundry_sdk.specs.preprocessors import name_preprocessors
from foundry_sdk.specs.run import (
    FINETUNING,
    AlgorithmsSpec,
    EvalLoader,
    FinetuneSpec,
    PretrainSpec,
    RunSpec,
)
from foundry_sdk.specs.yaml_writer import dump
from foundry_sdk.units import Duration

R = TypeVar("R", bound=RunSpec)

_LINE: Final = re.compile(r":(\d+)$")
_BY_KIND: Final = ("callbacks", "loggers")
_INHERITED: Final = ("max_seq_len",)
_STRAY: Final = "a value that is only there for ${...} belongs under 'variables'"


def read(
    path: str | FilePath,
    spec: type[R],
    overrides: Sequence[str] = (),
    *,
    catalog: Catalog | None = None,
) -> tuple[R, tuple[str, ...]]:
    """Read a spec file; return the spec and one notice for each key without effect.

    Args:
        path: a YAML file.
        spec: the class to read it as, such as ``PretrainSpec``.
        overrides: ``a.b.c=value``, applied like lines of the file.
        catalog: what the file may name; None = the built-ins and the installed plugins.

    Raises:
        SpecError: one line per mistake.
        PluginError: the installed plugins cannot be used together.
    """
    document = load(path, overrides)
    if catalog is None:
        from foundry_sdk.plugin.host import PluginHost

        catalog = PluginHost.from_environment().catalog()
    return run_spec(document, spec, catalog)


def spec_class(
    path: str | FilePath, overrides: Sequence[str] = ()
) -> type[PretrainSpec] | type[FinetuneSpec]:
    """Return the class that a file is to be read as: what its ``train_loader`` makes of it.

    Raises:
        SpecError: the file cannot be read.
    """
    loader = load(path, overrides).values.get("train_loader")
    is_finetuning = isinstance(loader, dict) and loader.get("name") == FINETUNING
    return FinetuneSpec if is_finetuning else PretrainSpec


def run_spec(document: Document, spec: type[R], catalog: Catalog) -> tuple[R, tuple[str, ...]]:
    """Turn a document into a run's spec; return it and its notices.

    Raises:
        SpecError: one line per mistake: dotted path, what was given, what is allowed, place.
    """
    old = translate(document.values)
    values, implied = name_preprocessors(old.values, catalog)
    length = old.values.get("max_seq_len")
    whole = isinstance(length, int) and not isinstance(length, bool)
    converter = SpecConverter(catalog, {key: length for key in _INHERITED if whole})
    taken, mistakes = converter.read_fields(values, spec, stray=_STRAY)
    mistakes += old.mistakes
    origins = {**old.origins, **implied}
    try:
        built: R = construct(spec, taken, mistakes + checks.problems(taken))
    except Mistakes as found:
        lines = [_line(path, text, document, origins) for path, text in found.items]
        raise SpecError("\n".join(dict.fromkeys(_in_file_order(lines)))) from found
    notices = [*old.notices, *converter.notices]
    lines = [_line(path, text, document, origins) for path, text in notices]
    return built, (*_in_file_order(lines), *built.notices())


def unstructure(spec: RunSpec) -> dict[str, Any]:
    """Return a spec as the plain values of a document: every field, defaults included.

    An int where the field is a float becomes one, as in reading, so that what is read again is
    printed alike.

    ``run_spec(from_values(unstructure(spec)), type(spec), catalog)`` gives an equal spec.
    """
    values: dict[str, Any] = plain(spec)
    for family in _BY_KIND:
        values[family] = {c.kind: _fields(c) for c in getattr(spec, family)}
    return values


def to_yaml(spec: RunSpec) -> str:
    """Return a spec as YAML that ``read`` reads as an equal spec."""
    return dump(unstructure(spec))


def plain(value: Any) -> Any:  # noqa: ANN401
    """Return any part of a spec as dicts, lists and scalars."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Duration | FilePath):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return value.replace("${", "\\${")
    return _tagged(value) if attrs.has(type(value)) else value


def _tagged(value: Any) -> dict[str, Any]:  # noqa: ANN401
    fields = _fields(value)
    if isinstance(value, EvalLoader):
        label = {} if value.label is None else {"label": value.label}
        return {**label, **_tagged(value.loader)}
    if isinstance(value, AlgorithmsSpec):
        return {key: item for key, item in fields.items() if item is not None}
    return {"name": value.kind, **fields} if isinstance(value, ComponentSpec) else fields


def _fields(value: Any) -> dict[str, Any]:  # noqa: ANN401
    try:
        annotations = field_types(type(value))
    except PluginError:  # of a spec made in Python, which no file can name
        annotations = {}
    return {
        field.alias or field.name: plain(
            as_declared(getattr(value, field.name), annotations.get(field.name))
        )
        for field in attrs.fields(type(value))
        if field.init
    }


def _line(path: Path, text: str, document: Document, origins: Mapping[Path, Path]) -> str:
    for moved, origin in origins.items():
        if path[: len(moved)] == moved:
            path = (*origin, *path[len(moved) :])
            break
    where = document.where(path)
    if where.startswith("override"):
        return f"{where}: {dotted(path)}: {text}"
    return f"{dotted(path)}: {text} ({where})"


def _in_file_order(lines: Sequence[str]) -> list[str]:
    def line_number(line: str) -> int:
        found = _LINE.search(line.removesuffix(")"))
        return int(found.group(1)) if found else 0

    return sorted(lines, key=line_number)
