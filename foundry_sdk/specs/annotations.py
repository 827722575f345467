"""What the type annotations of spec fields mean: tests on them, and words for them."""

import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path as FilePath
from typing import Any, Final, Literal, Union, get_args, get_origin

import attrs

from foundry_sdk.component import ComponentSpec
from foundry_sdk.errors import PluginError
from foundry_sdk.units import Duration

SCALARS: Final[Mapping[Any, str]] = types.MappingProxyType(
    {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
)
_WORDS: Final[Mapping[Any, str]] = types.MappingProxyType(
    {
        **SCALARS,
        type(None): "null",
        Duration: "a duration such as 100ba",
        FilePath: "a text",
    }
)
_SEQUENCES: Final = (tuple, list, Sequence)


def is_family(annotation: object) -> bool:
    """Tell a family (its tag still to be read) from a component."""
    return (
        isinstance(annotation, type)
        and issubclass(annotation, ComponentSpec)
        and not hasattr(annotation, "kind")
    )


def expected(annotation: Any) -> str:  # noqa: ANN401
    """Return in words what an annotation takes."""
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if is_union(annotation):
        return " or ".join(expected(arm) for arm in get_args(annotation))
    if annotation in _WORDS:
        return _WORDS[annotation]
    if is_sequence(annotation):
        return "a list"
    return "a text" if is_enum(annotation) else "a mapping"


def field_types(cls: type) -> dict[str, Any]:
    """Return the annotation of each field of an attrs class, forward references resolved.

    Raises:
        PluginError: one names what cannot be imported at run time.
    """
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        raise PluginError(
            f"{cls.__module__}.{cls.__name__}: {error}; a spec's annotations must be importable "
            "at run time (not only under TYPE_CHECKING)"
        ) from error


def fits(value: object, arm: Any) -> bool:  # noqa: ANN401
    """Tell whether ``value`` has the outer shape of one arm of a union."""
    if arm in SCALARS:
        return is_scalar(value, arm)
    if get_origin(arm) is Literal:
        return any(type(c) is type(value) and c == value for c in get_args(arm))
    if arm is Duration:
        return isinstance(value, str) or is_scalar(value, int)
    if arm is FilePath or is_enum(arm):
        return isinstance(value, str)
    if is_sequence(arm):
        return isinstance(value, list | tuple)
    return arm is Any or (isinstance(value, dict) and (is_mapping(arm) or attrs.has(arm)))


def is_scalar(value: object, scalar: type) -> bool:
    """Tell whether ``value`` is one of ``scalar``, where only an int may stand for a float."""
    if isinstance(value, bool):
        return scalar is bool
    return isinstance(value, (int, float) if scalar is float else scalar)


def as_declared(value: object, annotation: Any) -> object:  # noqa: ANN401
    """Return a value with floats for the ints that reading would make floats of.

    Defaults, and values that are given in Python, may have an int where a float is declared.
    """
    arms = get_args(annotation) if is_union(annotation) else (annotation,)
    if isinstance(value, int) and not isinstance(value, bool):
        literal = any(get_origin(arm) is Literal and fits(value, arm) for arm in arms)
        return float(value) if float in arms and int not in arms and not literal else value
    if isinstance(value, list | tuple):
        inner = next((get_args(arm) for arm in arms if is_sequence(arm)), ())
        if len(inner) == 1 or (len(inner) == 2 and inner[1] is Ellipsis):
            return [as_declared(item, inner[0]) for item in value]
        if len(inner) == len(value):
            return [as_declared(item, of) for item, of in zip(value, inner, strict=True)]
    if isinstance(value, Mapping):
        inner = next((get_args(arm) for arm in arms if is_mapping(arm)), ())
        return {key: as_declared(item, inner[1]) for key, item in value.items()} if inner else value
    return value


def is_union(annotation: Any) -> bool:  # noqa: ANN401
    """Tell ``A | B`` and ``Optional[A]``."""
    return get_origin(annotation) in (Union, types.UnionType)


def is_sequence(annotation: Any) -> bool:  # noqa: ANN401
    """Tell tuples, lists and sequences, with or without the type of their items."""
    return annotation in (tuple, list) or get_origin(annotation) in _SEQUENCES


def is_mapping(annotation: Any) -> bool:  # noqa: ANN401
    """Tell dicts and mappings."""
    return annotation is dict or get_origin(annotation) in (dict, Mapping)


def is_enum(annotation: Any) -> bool:  # noqa: ANN401
    """Tell enumerations."""
    return isinstance(annotation, type) and issubclass(annotation, Enum)
