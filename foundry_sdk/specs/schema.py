"""A JSON Schema (draft 2020-12) of a run's YAML file, for editors, from the spec classes."""

import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, Final, Literal, get_args, get_origin

import attrs

from foundry_sdk.component import ComponentSpec
from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.specs.annotations import (
    field_types,
    is_enum,
    is_family,
    is_mapping,
    is_sequence,
    is_union,
)
from foundry_sdk.specs.legacy import COMPILE, FSDP, TOP_LEVEL, LegacyKey
from foundry_sdk.specs.run import AlgorithmsSpec, CompileSpec, EvalLoader, FSDPSpec, RunSpec
from foundry_sdk.units import Duration

Schema = dict[str, Any]

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE: Final[Schema] = {"$ref": "#/$defs/reference"}
_SCALARS: Final[Mapping[Any, str]] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}
_COMPARISONS: Final[Mapping[str, str]] = {
    ">": "exclusiveMinimum",
    ">=": "minimum",
    "<": "exclusiveMaximum",
    "<=": "maximum",
}
_LEGACY: Final[Mapping[type, Mapping[str, LegacyKey]]] = {
    RunSpec: TOP_LEVEL,
    FSDPSpec: FSDP,
    AlgorithmsSpec: {},
    CompileSpec: COMPILE,
}
_ATTRIBUTE: Final = re.compile(r"([\w, ]+?):\s+(.*)")
_TAKEN_FROM_THE_RUN: Final = frozenset({"max_seq_len"})


def spec_schema(spec: type[RunSpec], catalog: Catalog) -> Schema:
    """Return the schema of the YAML file that ``read`` reads as ``spec``.

    Each component of ``catalog`` is in it, with its own fields. A value may always be a
    ``${...}``, as the file is checked before these are filled in.
    """
    maker = _Maker(catalog)
    root = maker.fields(spec, nested=False)
    root["properties"]["variables"] = {"description": "Values for ${...}; otherwise ignored."}
    definitions = dict(sorted(maker.definitions.items()))
    reference = {"type": "string", "pattern": r"^\$\{[^{}]*\}$", "description": "${a.b} or ${name}"}
    return {
        "$schema": _DRAFT,
        "title": f"foundry {spec.__name__}",
        **root,
        "$defs": {"reference": reference, **definitions},
    }


class _Maker:
    """Schemas of annotations; those of classes become definitions."""

    def __init__(self, catalog: Catalog) -> None:
        self.definitions: dict[str, Schema] = {}
        self._catalog = catalog

    def fields(self, cls: type, *, nested: bool, tag: str | None = None) -> Schema:
        """Return the schema of an attrs class; ``tag`` adds the ``name`` that picks it."""
        annotations = field_types(cls)
        docs = field_docs(cls)
        properties: dict[str, Schema] = {}
        required: list[str] = []
        if tag is not None:
            properties["name"] = {"const": tag}
            required.append("name")
        for field in (field for field in attrs.fields(cls) if field.init):
            key = field.alias or field.name
            schema = self._field(annotations[field.name], field)
            if key in docs:
                schema["description"] = docs[key]
            properties[key] = schema
            inherited = nested and key in _TAKEN_FROM_THE_RUN
            if field.default is attrs.NOTHING and not inherited:
                required.append(key)
        for key, why in getattr(cls, "without_effect", {}).items():
            properties.setdefault(key, {"deprecated": True, "description": f"No effect: {why}."})
        properties |= _legacy(cls)
        if tag is not None and getattr(cls, "family", None) == "model":
            for key, same in (("loss_fn", "loss: {name: …}"), ("master_weights_dtype", "weights")):
                described = {"type": ["string", "null"], "description": f"The same as {same}."}
                properties.setdefault(key, described)
        schema = {"type": "object", "additionalProperties": False, "properties": properties}
        if required:
            schema["required"] = required
        text = " ".join(_summary(cls).split())
        return {**schema, "description": text} if text else schema

    def _field(self, annotation: Any, field: "attrs.Attribute[Any]") -> Schema:  # noqa: ANN401
        bounds = _bounds(field.validator)
        schema = self._of(annotation, bounds)
        if annotation is str or schema == {}:
            return dict(schema)
        arms = schema["anyOf"] if set(schema) == {"anyOf"} else [schema]
        if field.default is not attrs.NOTHING and (
            is_sequence(annotation) or _is_table(annotation)
        ):
            arms = [*arms, {"type": "null"}]
        return {"anyOf": [*arms, _REFERENCE]}

    def _of(self, annotation: Any, bounds: Schema) -> Schema:  # noqa: ANN401, PLR0911
        if annotation is Any:
            return {}
        if annotation in _SCALARS:
            number = annotation in (int, float)
            return {"type": _SCALARS[annotation], **(bounds if number else {})}
        if annotation in (str, FilePath):
            return {"type": "string"}
        if annotation is Duration:
            return self._duration()
        if get_origin(annotation) is Literal:
            return {"enum": list(get_args(annotation))}
        if is_union(annotation):
            return {"anyOf": [self._of(arm, bounds) for arm in get_args(annotation)]}
        if is_sequence(annotation):
            return self._sequence(get_args(annotation))
        return self._table(annotation)

    def _table(self, annotation: Any) -> Schema:  # noqa: ANN401
        if is_enum(annotation):
            return {"enum": [member.value for member in annotation]}
        if is_mapping(annotation):
            inner = (get_args(annotation) or (str, Any))[1]
            return {"type": "object", "additionalProperties": self._or_reference(inner)}
        if is_family(annotation):
            return {"oneOf": [self._component(c) for c in self._catalog.components(annotation)]}
        if annotation is EvalLoader:
            return self._eval_loader()
        return self._defined(annotation.__name__, annotation, tag=None)

    def _component(self, component: type[ComponentSpec]) -> Schema:
        name = f"{component.family}:{component.kind}"
        return self._defined(name, component, tag=component.kind)

    def _defined(self, name: str, cls: type, *, tag: str | None) -> Schema:
        if name not in self.definitions:
            self.definitions[name] = {}  # a class may hold itself
            self.definitions[name] = self.fields(cls, nested=True, tag=tag)
        return {"$ref": f"#/$defs/{name.replace('~', '~0').replace('/', '~1')}"}

    def _sequence(self, inner: tuple[Any, ...]) -> Schema:
        if not inner:
            return {"type": "array"}
        if len(inner) == 1 or (len(inner) == 2 and inner[1] is Ellipsis):
            if is_family(inner[0]):
                return self._by_kind(inner[0])
            items = {"type": "array", "items": self._or_reference(inner[0])}
            if inner[0] is EvalLoader:
                return {"anyOf": [self._eval_loader(), items]}
            return items
        return {
            "type": "array",
            "prefixItems": [self._or_reference(kind) for kind in inner],
            "minItems": len(inner),
            "maxItems": len(inner),
        }

    def _by_kind(self, family: type[ComponentSpec]) -> Schema:
        properties: dict[str, Schema] = {}
        for component in self._catalog.components(family):
            name = f"{component.family}:{component.kind}"
            fields = self._defined(name, component, tag=None)
            text = self.definitions[name].get("description", "")
            properties[component.kind] = {
                "anyOf": [fields, {"type": "null"}, _REFERENCE],
                "description": text,
            }
        return {"type": "object", "additionalProperties": False, "properties": properties}

    def _eval_loader(self) -> Schema:
        """A loader's fields and a label: one definition per kind, as for the train loader."""
        choices = []
        for component in self._catalog.components(field_types(EvalLoader)["loader"]):
            name = f"eval_loader:{component.kind}"
            if name not in self.definitions:
                schema = self.fields(component, nested=True, tag=component.kind)
                label = {"type": ["string", "null"], "description": "What its metrics are called."}
                schema["properties"] = {"label": label, **schema["properties"]}
                self.definitions[name] = schema
            choices.append({"$ref": f"#/$defs/{name}"})
        return {"oneOf": choices}

    def _duration(self) -> Schema:
        self.definitions["duration"] = {
            "description": "100ba (steps), 1ep, 5e6sp, 2.5e9tok, 0.5dur (share of the run), 90sec, "
            "1h30m; a whole number counts epochs.",
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}],
        }
        return {"$ref": "#/$defs/duration"}

    def _or_reference(self, annotation: Any) -> Schema:  # noqa: ANN401
        schema = self._of(annotation, {})
        return schema if annotation is str or not schema else {"anyOf": [schema, _REFERENCE]}


def field_docs(cls: type) -> dict[str, str]:
    """Return what the ``Attributes:`` sections of ``cls`` and its bases say of each field."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        docs |= _attribute_lines(vars(base).get("__doc__") or "")
    return docs


def _attribute_lines(docstring: str) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    section = docstring.partition("Attributes:\n")[2]
    depth = None
    for line in section.splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        depth = indent if depth is None else depth
        if indent < depth:
            break
        start = _ATTRIBUTE.fullmatch(line.strip()) if indent == depth else None
        if start:
            names = [name.strip() for name in start.group(1).split(",")]
            found |= dict.fromkeys(names, start.group(2))
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _summary(cls: type) -> str:
    return (vars(cls).get("__doc__") or "").strip().partition("\n\n")[0]


def _legacy(cls: type) -> dict[str, Schema]:
    for known, keys in _LEGACY.items():
        if issubclass(cls, known):
            return {
                key: {"deprecated": True, "description": rule.notice or rule.refusal or ""}
                for key, rule in keys.items()
            }
    return {}


def _bounds(validator: object) -> Schema:
    """Return minimum and maximum from attrs' own number validators."""
    inner = getattr(validator, "_validators", None) or (getattr(validator, "validator", validator),)
    found: Schema = {}
    for part in inner:
        comparison = _COMPARISONS.get(getattr(part, "compare_op", ""))
        if comparison is not None:
            found[comparison] = getattr(part, "bound", None)
    return found


def _is_table(annotation: Any) -> bool:  # noqa: ANN401
    return is_mapping(annotation) or annotation is AlgorithmsSpec
