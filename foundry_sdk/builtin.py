"""The components that ship with the SDK, offered through the same hook as everyone's."""

from collections.abc import Iterable

from foundry_sdk.component import ComponentSpec
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.models.mpt.spec import MPTSpec


@hookimpl
def foundry_components() -> Iterable[type[ComponentSpec]]:
    """Offer the built-in components, sorted by family and kind."""
    return [MPTSpec]
