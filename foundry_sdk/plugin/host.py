"""Loading: sources in sorted order, each plugin alone, and one catalog of what they offer."""

import os
import traceback
from collections.abc import Iterable, Mapping
from importlib import import_module
from inspect import isabstract
from types import MappingProxyType
from typing import Final

import attrs
import pluggy

from foundry_sdk.component import ComponentSpec
from foundry_sdk.errors import PluginError
from foundry_sdk.hookspecs import ENTRY_POINT_GROUP, FoundryHooks
from foundry_sdk.plugin.catalog import Catalog, Entry, PluginFailure
from foundry_sdk.plugin.source import PluginSource, installed_sources

BUILTIN_NAME: Final = "builtin"


@attrs.frozen(kw_only=True)
class PluginHost:
    """The plugins of one process, and what went wrong with the others.

    Attributes:
        offers: each loaded source with its components; built-ins first.
        failures: sources that raised.
        left_out: sources that the allow-list does not name.
        allowed: the allow-list; None = no list.
    """

    offers: tuple[tuple[PluginSource, tuple[type[ComponentSpec], ...]], ...]
    failures: tuple[PluginFailure, ...] = ()
    left_out: tuple[PluginSource, ...] = ()
    allowed: tuple[str, ...] | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "PluginHost":
        """Load the installed plugins, obeying FOUNDRY_PLUGINS and FOUNDRY_STRICT_PLUGINS.

        Raises:
            PluginError: as ``load``.
        """
        listed = environ.get("FOUNDRY_PLUGINS")
        names = None if listed is None else [n.strip() for n in listed.split(",") if n.strip()]
        strict = environ.get("FOUNDRY_STRICT_PLUGINS") == "1"
        return cls.load(installed_sources(), allow=names, strict=strict)

    @classmethod
    def load(
        cls,
        sources: Iterable[PluginSource],
        *,
        allow: Iterable[str] | None = None,
        strict: bool = False,
        builtins: bool = True,
    ) -> "PluginHost":
        """Load built-ins, then ``sources`` sorted by distribution and name.

        Args:
            sources: plugins that could be loaded.
            allow: names of those that may be; None = all.
            strict: raise at the first plugin that fails.
            builtins: False leaves the SDK's own components out.

        Raises:
            PluginError: ``strict`` is set and a plugin fails, or ``allow`` names one that is
                not among ``sources``.
        """
        found = sorted(sources)
        allowed = None if allow is None else tuple(dict.fromkeys(allow))
        wanted = [s for s in found if allowed is None or s.name in allowed]
        missing = sorted(set(allowed or ()) - {source.name for source in wanted})
        if missing:
            there = ", ".join(sorted({source.name for source in found})) or "none"
            raise PluginError(
                f"FOUNDRY_PLUGINS: no installed plugin is named {', '.join(map(repr, missing))}; "
                f"installed: {there}"
            )
        offers: list[tuple[PluginSource, tuple[type[ComponentSpec], ...]]] = []
        if builtins:
            own = _builtin_source()
            offers.append((own, components_of(own)))
        failures: list[PluginFailure] = []
        for source in wanted:
            try:
                offers.append((source, components_of(source)))
            except (Exception, SystemExit) as error:  # a plugin may fail in any way
                failure = _failure(source, error)
                if strict:
                    raise PluginError(f"plugin {source}: {failure.reason}") from error
                failures.append(failure)
        return cls(
            offers=tuple(offers),
            failures=tuple(failures),
            left_out=tuple(s for s in found if s not in wanted),
            allowed=allowed,
        )

    def catalog(self) -> Catalog:
        """Index the offered components.

        Raises:
            PluginError: two components have the same family and kind.
        """
        entries: dict[tuple[str, str], Entry] = {}
        for source, components in self.offers:
            for component in components:
                key = (component.family, component.kind)
                entry = Entry(component=component, source=source)
                first = entries.setdefault(key, entry)
                if first is not entry:
                    raise PluginError(_duplicate(key, first.source, source))
        return Catalog(
            entries=MappingProxyType(entries),
            failures=self.failures,
            left_out=self.left_out,
            allowed=self.allowed,
        )


def components_of(source: PluginSource) -> tuple[type[ComponentSpec], ...]:
    """Import one plugin and ask it for its components.

    Each plugin gets a manager of its own: pluggy stops a call at the first exception, so in a
    shared manager one plugin's mistake would be everyone's.

    Raises:
        TypeError: it offers something that is no component, or has no hook at all.
    """
    manager = pluggy.PluginManager(ENTRY_POINT_GROUP)
    manager.add_hookspecs(FoundryHooks)
    plugin = source.load()
    manager.register(plugin, name=source.name)
    manager.check_pending()
    answers = manager.hook.foundry_components()
    if not answers:
        raise TypeError(f"{plugin!r} has no function foundry_components marked with @hookimpl")
    components = [component for answer in answers for component in answer]
    for component in components:
        _check_is_component(component)
    return tuple(components)


def _builtin_source() -> PluginSource:
    # By name, when loading: importing this module must not import every component.
    from foundry_sdk import __version__

    return PluginSource(
        distribution="foundry-sdk",
        name=BUILTIN_NAME,
        version=__version__,
        load=lambda: import_module("foundry_sdk.builtin"),
    )


def _check_is_component(candidate: object) -> None:
    """Raise TypeError unless ``candidate`` is a concrete attrs class with family and kind."""
    if not (isinstance(candidate, type) and issubclass(candidate, ComponentSpec)):
        raise TypeError(f"{candidate!r} is not a ComponentSpec class")
    if isabstract(candidate):
        raise TypeError(f"{candidate.__name__} does not implement {_abstract_methods(candidate)}")
    for tag in ("family", "kind"):
        if not isinstance(getattr(candidate, tag, None), str):
            raise TypeError(f"{candidate.__name__} has no {tag}")
    if "__attrs_attrs__" not in vars(candidate):
        raise TypeError(f"{candidate.__name__} needs the decorator @attrs.frozen(kw_only=True)")


def _abstract_methods(candidate: type) -> str:
    return ", ".join(sorted(getattr(candidate, "__abstractmethods__", ())))


def _failure(source: PluginSource, error: BaseException) -> PluginFailure:
    first = error
    while (deeper := first.__cause__ or first.__context__) is not None:
        first = deeper
    return PluginFailure(
        source=source,
        reason=_one_line(error),
        cause=None if first is error else _one_line(first),
        details="".join(traceback.format_exception(error)),
    )


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _duplicate(key: tuple[str, str], first: PluginSource, second: PluginSource) -> str:
    family, kind = key
    if first == second:
        return f"{family} {kind!r} is offered twice by {first}"
    fix = (
        f"leave {second.name!r} out of FOUNDRY_PLUGINS"
        if first.name == BUILTIN_NAME
        else f"leave {first.name!r} or {second.name!r} out of FOUNDRY_PLUGINS"
    )
    return f"{family} {kind!r} is offered by both {first} and {second}; {fix}"
