"""Where plugins come from: the installed entry points, without importing any of them."""

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points

import attrs

from foundry_sdk.hookspecs import ENTRY_POINT_GROUP


@attrs.frozen(kw_only=True, order=True)
class PluginSource:
    """Where a plugin may be loaded from; nothing is imported until ``load`` is called.

    Attributes:
        distribution: the installed package that declares the entry point.
        name: of the entry point; what ``FOUNDRY_PLUGINS`` lists.
        version: of the distribution.
        load: imports the plugin and returns the module or object with the hook.
    """

    distribution: str
    name: str
    version: str = "unknown"
    load: Callable[[], object] = attrs.field(eq=False, order=False)

    def __str__(self) -> str:
        """Return ``'name' (distribution version)``."""
        return f"{self.name!r} ({self.distribution} {self.version})"


def installed_sources() -> Iterator[PluginSource]:
    """Yield one source per installed entry point of the group."""
    for point in entry_points(group=ENTRY_POINT_GROUP):
        yield PluginSource(
            distribution=point.dist.name if point.dist else "(unknown distribution)",
            name=point.name,
            version=point.dist.version if point.dist else "unknown",
            load=point.load,
        )
