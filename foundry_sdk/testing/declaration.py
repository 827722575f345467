"""How a component is declared: class, docstring, signature, imports, and fields as YAML."""

import inspect
import subprocess
import sys
from types import MappingProxyType
from typing import Any, Final

import attrs
from ruamel.yaml.error import YAMLError

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.component import ComponentSpec
from foundry_sdk.data.contract import DataSpec, PreprocessorSpec
from foundry_sdk.errors import PluginError
from foundry_sdk.loggers.contract import LoggerSpec
from foundry_sdk.losses.contract import LossSpec
from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.optim.contract import OptimizerSpec, SchedulerSpec
from foundry_sdk.plugin.catalog import Catalog, Entry
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.plugin.source import PluginSource
from foundry_sdk.specs.converter import Mistakes, SpecConverter
from foundry_sdk.specs.places import dotted
from foundry_sdk.specs.structure import plain
from foundry_sdk.specs.yaml_text import parse
from foundry_sdk.specs.yaml_writer import dump
from foundry_sdk.testing.failure import ConformanceError, expect, name_of

FAMILIES: Final[tuple[type[ComponentSpec], ...]] = (
    CallbackSpec,
    DataSpec,
    LoggerSpec,
    LossSpec,
    ModelSpec,
    OptimizerSpec,
    PreprocessorSpec,
    SchedulerSpec,
)
_BY_KIND: Final = (CallbackSpec, LoggerSpec)
"""Families that YAML lists as a mapping from kind to fields."""
HEAVY: Final = ("torch", "transformers", "streaming", "datasets", "accelerate", "matplotlib")
_FIELDS: Final = (
    "fields hold scalars, lists, mappings, durations, other components or attrs classes of them"
)
_LONGEST_LINE: Final = 120
_LOADED: Final = """
import importlib, sys
sys.path[:] = {path!r}
importlib.import_module({module!r})
print(*(name for name in {heavy!r} if name in sys.modules))
"""


def family_of(component: type[ComponentSpec]) -> type[ComponentSpec]:
    """Return the contract that a component is of.

    Raises:
        ConformanceError: none.
    """
    for family in FAMILIES:
        if issubclass(component, family):
            return family
    names = ", ".join(family.__name__ for family in FAMILIES)
    raise ConformanceError(f"{component.__name__}: derive it from one of {names}")


def check_declaration(component: type[ComponentSpec]) -> None:
    """Check a component's class: attrs, tags, docstring, ``build``, and what importing it loads.

    Raises:
        ConformanceError: something is not as the catalog and the spec files need it.
    """
    family = family_of(component)
    expect(
        "__attrs_attrs__" in vars(component),
        component,
        "decorate the class with @attrs.frozen(kw_only=True)",
    )
    _check_tags(component, family)
    abstract = sorted(getattr(component, "__abstractmethods__", ()))
    expect(not abstract, component, f"implement {', '.join(abstract)}")
    positional = [f.name for f in attrs.fields(component) if f.init and not f.kw_only]
    expect(
        not positional,
        component,
        f"{', '.join(positional)} can be given by position; decorate the class with "
        "@attrs.frozen(kw_only=True)",
    )
    frozen = getattr(component, "__setattr__", None) is getattr(ComponentSpec, "__setattr__", None)
    expect(
        frozen,
        component,
        "its values can be changed after it was made; decorate the class with "
        "@attrs.frozen(kw_only=True)",
    )
    expect(
        "__eq__" in vars(component),
        component,
        "specs are told apart by their values; leave out eq=False, and do not inherit __eq__",
    )
    _check_docstring(component)
    _check_signature(component, family)
    _check_imports(component)


def check_fields(spec: ComponentSpec) -> None:
    """Check that a spec's fields are typed and survive the way through YAML.

    Raises:
        ConformanceError: a field has no type, or none that YAML can be read as, or the spec that
            comes back is another one.
    """
    component = type(spec)
    untyped = [f.name for f in attrs.fields(component) if f.init and f.type is None]
    expect(not untyped, spec, f"give {', '.join(untyped)} a type annotation; YAML is read by it")
    family = family_of(component)
    fields = {
        field.alias or field.name: plain(getattr(spec, field.name))
        for field in attrs.fields(component)
        if field.init
    }
    by_kind = family in _BY_KIND
    try:
        text = dump({spec.kind: fields} if by_kind else {"name": spec.kind, **fields})
    except YAMLError as error:
        raise ConformanceError(
            f"{name_of(spec)}: {fields!r} cannot be written as YAML ({error}); {_FIELDS}"
        ) from error
    values = _unescaped(parse(text).values)
    converter = SpecConverter(_catalog_with(component), {})
    try:
        if by_kind:
            [again] = converter.value(values, tuple[family, ...])  # type: ignore[valid-type]
        else:
            again = converter.value(values, family)
    except Mistakes as found:
        lines = "; ".join(f"{dotted(path)}: {problem}" for path, problem in found.items)
        raise ConformanceError(
            f"{name_of(spec)}: written as YAML and read again, it is refused ({lines}); {_FIELDS}"
        ) from found
    except PluginError as error:
        raise ConformanceError(f"{name_of(spec)}: {error}") from error
    expect(
        again == spec,
        spec,
        f"written as YAML and read again, it is another spec: {again!r} instead of {spec!r}; "
        "compare fields by value, and let converters accept what they return",
    )


def _check_tags(component: type[ComponentSpec], family: type[ComponentSpec]) -> None:
    kind = getattr(component, "kind", None)
    expect(isinstance(kind, str) and kind, component, 'set kind = "...", its name in YAML')
    expect(
        isinstance(kind, str) and not any(c.isspace() for c in kind),
        component,
        f"kind {kind!r} has a space in it; YAML files name it, so use one word",
    )
    expect(
        component.family == family.family,
        component,
        f"family is {component.family!r}; leave it as {family.__name__} sets it",
    )
    reserved = {"kind", "family"} if family in _BY_KIND else {"kind", "family", "name"}
    fields = {field.name for field in attrs.fields(component)} & reserved
    expect(
        not fields,
        component,
        f"{', '.join(sorted(fields))} must not be a field: 'name' is the tag in YAML, and kind "
        "and family belong to the class (write them without annotation)",
    )


def _check_docstring(component: type[ComponentSpec]) -> None:
    lines = (vars(component).get("__doc__") or "").strip().splitlines()
    first = lines[0].strip() if lines else ""
    expect(first, component, "write a docstring; its first line is what `foundry plugins` shows")
    expect(
        first.endswith((".", "!", "?")) and len(first) <= _LONGEST_LINE,
        component,
        f"the docstring's first line is what `foundry plugins` shows: make it one whole sentence "
        f"of at most {_LONGEST_LINE} characters, got {first!r}",
    )


def _check_signature(component: type[ComponentSpec], family: type[ComponentSpec]) -> None:
    promised, found = (_parameters(cls) for cls in (family, component))
    missing = [name for name in promised if name not in found]
    extra = [
        name
        for name, parameter in found.items()
        if name not in promised and parameter.default is inspect.Parameter.empty
    ]
    kinds = [
        name for name in promised if name in found and found[name].kind is not promised[name].kind
    ]
    expect(
        not (missing or extra or kinds),
        component,
        f"build takes ({', '.join(map(str, found.values()))}), but runs call it as "
        f"{family.__name__} says: build({', '.join(map(str, promised.values()))})",
    )


def _parameters(component: type[ComponentSpec]) -> dict[str, inspect.Parameter]:
    build: Any = vars(component).get("build") or component.build  # type: ignore[attr-defined]
    _, *parameters = inspect.signature(build).parameters.items()
    return {
        name: parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in parameters
    }


def _check_imports(component: type[ComponentSpec]) -> None:
    """Import the component's module in a process of its own, and look what came with it."""
    module = component.__module__
    code = _LOADED.format(path=sys.path, module=module, heavy=HEAVY)
    done = subprocess.run(  # noqa: S603 - this interpreter, on code of ours
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1:]
    expect(
        done.returncode == 0,
        component,
        f"the module {module!r} cannot be imported in a new process ({''.join(last)}); put the "
        "component into a module that is installed or on sys.path",
    )
    heavy = done.stdout.split()
    expect(
        not heavy,
        component,
        f"importing {module!r} loads {', '.join(heavy)}; import it inside build(), so that "
        "listing plugins and reading specs stay quick",
    )


def _catalog_with(component: type[ComponentSpec]) -> Catalog:
    """Return the built-ins and this component."""
    source = PluginSource(distribution="under test", name=component.kind, load=lambda: component)
    builtin = PluginHost.load([]).catalog()
    own = {(component.family, component.kind): Entry(component=component, source=source)}
    return attrs.evolve(builtin, entries=MappingProxyType({**builtin.entries, **own}))


def _unescaped(value: Any) -> Any:  # noqa: ANN401
    """Undo what ``plain`` does to ``${``, which a document does when it is read."""
    if isinstance(value, dict):
        return {key: _unescaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unescaped(item) for item in value]
    return value.replace("\\${", "${") if isinstance(value, str) else value
