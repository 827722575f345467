"""What a spec may name: components by family and kind, and why others are missing."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

import attrs

from foundry_sdk.component import ComponentSpec
from foundry_sdk.errors import PluginError, UnknownComponentError
from foundry_sdk.plugin.source import PluginSource

S = TypeVar("S", bound=ComponentSpec)


@attrs.frozen(kw_only=True)
class PluginFailure:
    """A plugin that could not be loaded, kept so that it can be shown and blamed.

    Attributes:
        source: which one.
        reason: the error in one line.
        cause: the first error of its chain in one line, where that is another one.
        details: the traceback.
    """

    source: PluginSource
    reason: str
    cause: str | None = None
    details: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Entry:
    """One component and where it is from."""

    component: type[ComponentSpec]
    source: PluginSource

    @property
    def help(self) -> str:
        """The first line of the component's docstring."""
        return next(iter((self.component.__doc__ or "").strip().splitlines()), "")


@attrs.frozen(kw_only=True)
class Catalog:
    """Everything a spec may name, by (family, kind). A value: it never changes.

    Attributes:
        entries: in the order of loading: built-ins, then plugins by distribution and name.
        failures: plugins that could not be loaded.
        left_out: installed plugins that ``FOUNDRY_PLUGINS`` does not list.
        allowed: what ``FOUNDRY_PLUGINS`` lists; None = everything installed.
    """

    entries: Mapping[tuple[str, str], Entry]
    failures: tuple[PluginFailure, ...] = ()
    left_out: tuple[PluginSource, ...] = ()
    allowed: tuple[str, ...] | None = None

    def families(self) -> list[str]:
        """Return the families that have a component, in alphabetical order."""
        return sorted({family for family, _ in self.entries})

    def kinds(self, family: type[ComponentSpec]) -> list[str]:
        """Return the kinds of ``family`` in alphabetical order."""
        return sorted(kind for name, kind in self.entries if name == family.family)

    def components(self, family: type[S]) -> list[type[S]]:
        """Return the component classes of ``family``, by kind."""
        return [self.find(family, kind) for kind in self.kinds(family)]

    def find(self, family: type[S], kind: str) -> type[S]:
        """Return the component class of that kind.

        Raises:
            UnknownComponentError: nobody offers it; the message has the nearest kinds, other
                families with a component of that name, and plugins that are not loaded.
            PluginError: a plugin offers it for ``family`` without being a subclass of it.
        """
        entry = self.entries.get((family.family, kind))
        if entry is None:
            raise UnknownComponentError(self._unknown(family, kind))
        if not issubclass(entry.component, family):
            raise PluginError(
                f"{entry.source}: {entry.component.__name__} says it is a {family.family}, but is "
                f"no subclass of {family.__name__}"
            )
        return entry.component

    def _unknown(self, family: type[ComponentSpec], kind: str) -> str:
        known = self.kinds(family)
        noun = {"data": "data loader"}.get(family.family, family.family)
        parts = [f"no {noun} is named {kind!r}"]
        elsewhere = [name for name in self.families() if (name, kind) in self.entries]
        near = difflib.get_close_matches(kind, known, n=3)
        if elsewhere:
            article = "an" if elsewhere[0][0] in "aeiou" else "a"
            parts.append(f"{kind!r} is {article} {' and a '.join(elsewhere)}")
        if near:
            parts.append(f"did you mean {' or '.join(map(repr, near))}?")
        parts.append(f"known: {', '.join(known) or 'none'}")
        parts += [f"plugin {f.source} failed: {f.cause or f.reason}" for f in self.failures]
        if self.left_out:
            names = [*(self.allowed or ()), *(source.name for source in self.left_out)]
            parts.append(
                f"installed but not allowed: {', '.join(map(str, self.left_out))}; to load, set "
                f"FOUNDRY_PLUGINS={','.join(names)}"
            )
        return "; ".join(parts)
