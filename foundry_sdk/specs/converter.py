"""The cattrs converter behind ``structure``: strict values, our tags, every mistake at once."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path as FilePath
from typing import Any, Final, Literal, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.errors import StructureHandlerNotFoundError

from foundry_sdk.component import ComponentSpec
from foundry_sdk.errors import PluginError, SpecError, UnknownComponentError
from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.specs.annotations import (
    SCALARS,
    expected,
    field_types,
    fits,
    is_enum,
    is_family,
    is_mapping,
    is_scalar,
    is_sequence,
    is_union,
)
from foundry_sdk.specs.legacy import COMPONENTS
from foundry_sdk.specs.places import Path, describe
from foundry_sdk.specs.run import AlgorithmsSpec, EvalLoader
from foundry_sdk.units import Duration

# What a class may raise for values that it does not take; anything else is a plugin's bug too, but
# then its traceback helps more than a line.
_REFUSALS: Final = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError)


class Mistakes(Exception):  # noqa: N818 - several, carried to the one place that reports them
    """What is wrong with a value, each with its path from there."""

    def __init__(self, items: Iterable[tuple[Path, str]]) -> None:
        super().__init__()
        self.items = list(items)

    def below(self, step: str | int) -> list[tuple[Path, str]]:
        """Return the mistakes as seen from one level up."""
        return [((step, *path), text) for path, text in self.items]


class SpecConverter:
    """Structures values into spec classes.

    Attributes:
        notices: keys that were accepted without effect, with their path from the class that was
            asked for; filled while structuring.
    """

    def __init__(self, catalog: Catalog, inherited: Mapping[str, Any]) -> None:
        """Read tags through ``catalog``; a field named in ``inherited`` takes its value from there.

        That happens where a class of fields inside the run has such a field and none is given.
        """
        self.notices: list[tuple[Path, str]] = []
        self._catalog = catalog
        self._inherited = inherited
        self._converter = converter = Converter()
        converter.register_structure_hook_func(attrs.has, self.fields_of)
        converter.register_structure_hook_func(is_family, self._tagged)
        converter.register_structure_hook_func(is_sequence, self._sequence)
        converter.register_structure_hook_func(is_mapping, self._mapping)
        converter.register_structure_hook_func(_is_literal, _literal)
        converter.register_structure_hook_func(is_union, self._union)
        converter.register_structure_hook_func(_is_any, lambda value, _: value)
        converter.register_structure_hook_func(is_enum, _enumerated)
        for scalar in SCALARS:
            converter.register_structure_hook(scalar, _strict(scalar))
        converter.register_structure_hook(Duration, _duration)
        converter.register_structure_hook(FilePath, _file_path)
        converter.register_structure_hook(EvalLoader, self._eval_loader)
        converter.register_structure_hook(AlgorithmsSpec, self._algorithms)

    def value(self, value: Any, annotation: Any) -> Any:  # noqa: ANN401
        """Structure one value.

        Raises:
            Mistakes: it is not what the annotation says.
            PluginError: the annotation is none that a spec may have.
        """
        try:
            return self._converter.structure(value, annotation)
        except StructureHandlerNotFoundError as error:
            raise PluginError(f"a spec cannot have a field of type {annotation}") from error

    def fields_of(self, value: Any, cls: type) -> Any:  # noqa: ANN401
        """Structure a mapping into the attrs class ``cls``."""
        keys = [field.alias or field.name for field in attrs.fields(cls) if field.init]
        if not isinstance(value, dict):
            raise Mistakes(
                [((), f"expected a mapping with {_listed(keys)}, got {describe(value)}")]
            )
        taken, mistakes = self.read_fields(value, cls)
        return construct(cls, taken, mistakes)

    def read_fields(
        self, value: Mapping[str, Any], cls: type, *, stray: str | None = None
    ) -> tuple[dict[str, Any], list[tuple[Path, str]]]:
        """Structure each field of ``cls`` by itself; return those that could be, and mistakes.

        ``stray`` is said of an unknown key that resembles none, instead of all known ones.
        """
        annotations = field_types(cls)
        fields = {field.alias or field.name: field for field in attrs.fields(cls) if field.init}
        taken: dict[str, Any] = {}
        mistakes: list[tuple[Path, str]] = []
        silent: Mapping[str, str] = getattr(cls, "without_effect", {})
        for key, given in value.items():
            if key in fields:
                self._one_field(key, given, annotations[fields[key].name], taken, mistakes)
            elif key in silent:
                self.notices.append(((key,), f"accepted without effect: {silent[key]}"))
            else:
                mistakes.append(((key,), f"unknown key; {_hint(key, [*fields, *silent], stray)}"))
        for key, field in fields.items():
            if key in value and value[key] is not None:
                continue
            if key in self._inherited and taken.get(key) is None:
                mistakes = [mistake for mistake in mistakes if mistake[0] != (key,)]
                self._one_field(key, self._inherited[key], annotations[field.name], taken, mistakes)
            elif key not in value and field.default is attrs.NOTHING:
                mistakes.append(((key,), "required, but not given"))
        return taken, mistakes

    def _one_field(
        self,
        key: str,
        given: Any,  # noqa: ANN401
        annotation: Any,  # noqa: ANN401
        taken: dict[str, Any],
        mistakes: list[tuple[Path, str]],
    ) -> None:
        before = len(self.notices)
        try:
            taken[key] = self.value(given, annotation)
        except Mistakes as found:
            mistakes += found.below(key)
        self.notices[before:] = [((key, *path), text) for path, text in self.notices[before:]]

    def _tagged(self, value: Any, family: type[ComponentSpec]) -> ComponentSpec:  # noqa: ANN401
        kinds = ", ".join(self._catalog.kinds(family)) or "none is installed"
        if not isinstance(value, dict):
            text = f"expected a mapping with name: (known: {kinds}), got {describe(value)}"
            raise Mistakes([((), text)])
        if not isinstance(kind := value.get("name"), str):
            got = f", got {describe(kind)}" if "name" in value else ""
            raise Mistakes([(("name",), f"required: which {family.family}{got}; known: {kinds}")])
        component = self._component(family, kind, ("name",))
        return self._fields_of_component(component, {k: v for k, v in value.items() if k != "name"})

    def _component(self, family: type[ComponentSpec], kind: str, path: Path) -> type[ComponentSpec]:
        try:
            return self._catalog.find(family, kind)
        except UnknownComponentError as error:
            instead = COMPONENTS.get((family.family, kind))
            if instead is not None:
                text = f"{family.family} {kind!r} is not supported here; {instead}"
                raise Mistakes([(path, text)]) from error
            raise Mistakes([(path, str(error))]) from error

    def _fields_of_component(
        self, component: type[ComponentSpec], value: dict[str, Any]
    ) -> ComponentSpec:
        built: ComponentSpec = self.fields_of(value, component)
        return built

    def _sequence(self, value: Any, annotation: Any) -> Any:  # noqa: ANN401
        inner = get_args(annotation)
        one_type = len(inner) == 1 or (len(inner) == 2 and inner[1] is Ellipsis)
        if one_type and (is_family(inner[0]) or inner[0] is EvalLoader):
            if value is None:
                return ()
            if isinstance(value, dict):
                if inner[0] is EvalLoader:
                    return (self.value(value, EvalLoader),)
                return self._by_kind(value, inner[0])
        if value is None and one_type:
            value = []
        if not isinstance(value, list | tuple):
            raise Mistakes([((), f"expected a list, got {describe(value)}")])
        if not one_type and inner and len(value) != len(inner):
            text = f"expected a list of {len(inner)} items, got {len(value)}"
            raise Mistakes([((), text)])
        kinds = [inner[0] if one_type else inner[i] for i in range(len(value))] if inner else []
        items = self._each([(i, item, kinds[i] if kinds else Any) for i, item in enumerate(value)])
        return items if get_origin(annotation) is list else tuple(items)

    def _mapping(self, value: Any, annotation: Any) -> dict[str, Any]:  # noqa: ANN401
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise Mistakes([((), f"expected a mapping, got {describe(value)}")])
        inner = (get_args(annotation) or (str, Any))[1]
        return dict(
            zip(value, self._each([(key, v, inner) for key, v in value.items()]), strict=True)
        )

    def _by_kind(
        self, value: dict[str, Any], family: type[ComponentSpec]
    ) -> tuple[ComponentSpec, ...]:
        """Structure ``callbacks: {lr_monitor: {}, speed_monitor: {window_size: 10}}``."""
        built: list[ComponentSpec] = []
        mistakes: list[tuple[Path, str]] = []
        for kind, given in value.items():
            before = len(self.notices)
            try:
                component = self._component(family, kind, ())
                built.append(self.fields_of({} if given is None else given, component))
            except Mistakes as found:
                mistakes += found.below(kind)
            self.notices[before:] = [((kind, *p), text) for p, text in self.notices[before:]]
        if mistakes:
            raise Mistakes(mistakes)
        return tuple(built)

    def _each(self, items: list[tuple[str | int, Any, Any]]) -> list[Any]:
        done: list[Any] = []
        mistakes: list[tuple[Path, str]] = []
        for step, value, annotation in items:
            before = len(self.notices)
            try:
                done.append(self.value(value, annotation))
            except Mistakes as found:
                mistakes += found.below(step)
            self.notices[before:] = [((step, *p), text) for p, text in self.notices[before:]]
        if mistakes:
            raise Mistakes(mistakes)
        return done

    def _union(self, value: Any, annotation: Any) -> Any:  # noqa: ANN401
        arms = get_args(annotation)
        if value is None and type(None) in arms:
            return None
        fitting = [arm for arm in arms if fits(value, arm)]
        if not fitting:
            hint = _quoted(value) if str in arms else ""
            raise Mistakes([((), f"expected {expected(annotation)}, got {describe(value)}{hint}")])
        found: Mistakes | None = None
        for arm in fitting:
            try:
                return self.value(value, arm)
            except Mistakes as error:
                found = found or error
        raise found or Mistakes([((), f"expected {expected(annotation)}")])

    def _eval_loader(self, value: Any, _: object) -> EvalLoader:  # noqa: ANN401
        """An eval loader is its loader's mapping, with a ``label`` among the keys."""
        annotation = field_types(EvalLoader)["loader"]
        label = None
        mistakes: list[tuple[Path, str]] = []
        loader: Any = None
        if isinstance(value, dict):
            label = value.get("label")
            if not isinstance(label, str | None):
                mistakes.append((("label",), f"expected a text, got {describe(label)}"))
            value = {key: item for key, item in value.items() if key != "label"}
        try:
            loader = self.value(value, annotation)
        except Mistakes as found:
            mistakes += found.items
        if mistakes:
            raise Mistakes(mistakes)
        return EvalLoader(loader=loader, label=label)

    def _algorithms(self, value: Any, cls: type) -> Any:  # noqa: ANN401
        """An algorithm that is named without fields has its defaults, as in LLM Foundry."""
        if isinstance(value, dict):
            value = {key: {} if fields is None else fields for key, fields in value.items()}
        return self.fields_of({} if value is None else value, cls)


def construct(cls: type, taken: dict[str, Any], mistakes: list[tuple[Path, str]]) -> Any:  # noqa: ANN401
    """Return ``cls(**taken)``, or raise all mistakes, those of each field's validator included."""
    whole: list[tuple[Path, str]] = []
    if not mistakes:
        try:
            return cls(**taken)
        except _REFUSALS as error:
            whole = [((), _text(error))]
    refused = list(_refused_fields(cls, taken))
    raise Mistakes(mistakes + (refused or whole))


def _refused_fields(cls: type, taken: Mapping[str, Any]) -> Iterable[tuple[Path, str]]:
    """Yield what each field's validator says of its value, on an object made for asking."""
    probe: Any = object.__new__(cls)
    fields = [field for field in attrs.fields(cls) if (field.alias or field.name) in taken]
    for field in fields:
        object.__setattr__(probe, field.name, taken[field.alias or field.name])
    for field in fields:
        if field.validator is None:
            continue
        try:
            field.validator(probe, field, getattr(probe, field.name))
        except AttributeError:  # it reads a field that has a mistake of its own
            continue
        except _REFUSALS as error:
            key = field.alias or field.name
            yield (key,), _without_name(_text(error), field.name, getattr(probe, field.name))


def _is_literal(annotation: Any) -> bool:  # noqa: ANN401
    return get_origin(annotation) is Literal


def _is_any(annotation: object) -> bool:
    return annotation is Any


def _text(error: BaseException) -> str:
    return " ".join(str(error.args[0] if error.args else type(error).__name__).split())


def _without_name(text: str, name: str, value: object) -> str:
    """Return a validator's message without the name, which the path has, but with the value."""
    for prefix in (f"'{name}' ", f"{name} "):
        text = text.removeprefix(prefix)
    bare = text.removesuffix(f": {value}")
    return text if bare == text and repr(value) in text else f"{bare}, got {describe(value)}"


def _hint(key: str, known: Sequence[str], stray: str | None) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else stray or f"known: {_listed(known)}"


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys) or "no keys"


def _strict(scalar: type) -> Callable[[Any, Any], Any]:
    """Return a hook that makes a float of an int, and changes nothing else."""

    def hook(value: Any, _: object) -> Any:  # noqa: ANN401
        if not is_scalar(value, scalar):
            raise Mistakes([((), _wrong_scalar(value, scalar))])
        try:
            return float(value) if scalar is float else value
        except OverflowError as error:
            raise Mistakes([((), "is too large a number")]) from error

    return hook


def _wrong_scalar(value: object, scalar: type) -> str:
    text = f"expected {SCALARS[scalar]}, got {describe(value)}"
    if isinstance(value, str) and scalar is not str:
        text += "; without quotes?" if _would_fit(value, scalar) else ""
    return text + (_quoted(value) if scalar is str else "")


def _quoted(value: object) -> str:
    """Return how a number or truth value is written that was meant as a text."""
    return f"; with quotes it is a text: '{describe(value)}'" * isinstance(value, int | float)


def _would_fit(value: str, scalar: type) -> bool:
    from foundry_sdk.specs.yaml_text import scalar as read_scalar

    return is_scalar(read_scalar(value), scalar)


def _literal(value: Any, annotation: Any) -> Any:  # noqa: ANN401
    allowed = get_args(annotation)
    for choice in allowed:
        if type(choice) is type(value) and choice == value:
            return value
    near = difflib.get_close_matches(str(value), [str(choice) for choice in allowed], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise Mistakes([((), f"expected {expected(annotation)}, got {describe(value)}{hint}")])


def _enumerated(value: Any, annotation: type[Enum]) -> Enum:  # noqa: ANN401
    for member in annotation:
        if type(member.value) is type(value) and member.value == value:
            return member
    choices = ", ".join(str(member.value) for member in annotation)
    raise Mistakes([((), f"expected one of {choices}, got {describe(value)}")])


def _duration(value: Any, _: object) -> Duration:  # noqa: ANN401
    try:
        return Duration.parse(value)
    except (SpecError, OverflowError) as error:
        raise Mistakes([((), str(error))]) from error


def _file_path(value: Any, _: object) -> FilePath:  # noqa: ANN401
    if not isinstance(value, str):
        raise Mistakes([((), f"expected a path, got {describe(value)}")])
    return FilePath(value)
