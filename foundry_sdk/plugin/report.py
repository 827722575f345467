"""The text of ``foundry plugins``."""

from collections.abc import Iterable

from foundry_sdk.errors import SpecError
from foundry_sdk.plugin.catalog import Catalog, PluginFailure

_HEAD = ("FAMILY", "KIND", "DISTRIBUTION", "VERSION", "HELP")


def plugin_report(catalog: Catalog, *, family: str | None = None, details: bool = False) -> str:
    """Return a table of the components, then the plugins that failed or were left out.

    Args:
        catalog: what is loaded.
        family: only components of that family; None = all.
        details: add each failure's traceback.

    Raises:
        SpecError: there is no such family.
    """
    families = catalog.families()
    if family is not None and family not in families:
        raise SpecError(f"no component family is named {family!r}; known: {', '.join(families)}")
    rows = sorted(
        (name, kind, entry.source.distribution, entry.source.version, entry.help)
        for (name, kind), entry in catalog.entries.items()
        if family in (None, name)
    )
    lines = _table([_HEAD, *rows])
    if catalog.failures:
        lines += ["", "Failed plugins:"]
        lines += [line for failure in catalog.failures for line in _failed(failure, details)]
    if catalog.left_out:
        lines += ["", "Installed, but not listed in FOUNDRY_PLUGINS:"]
        lines += [f"  {source}" for source in catalog.left_out]
    return "\n".join(lines)


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    table = list(rows)
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEAD))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _failed(failure: PluginFailure, details: bool) -> list[str]:
    lines = [f"  {failure.source}: {failure.reason}"]
    if failure.cause is not None:
        lines.append(f"    first cause: {failure.cause}")
    if details:
        lines += [f"    {line}" for line in failure.details.rstrip().splitlines()]
    return lines
