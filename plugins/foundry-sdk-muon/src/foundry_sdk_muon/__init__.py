"""Muon for hidden matrices, AdamW for the rest, and a callback: a plugin of foundry-sdk."""

from collections.abc import Iterable

from foundry_sdk.component import ComponentSpec
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk_muon.monitor import MuonMonitorSpec
from foundry_sdk_muon.spec import MuonSpec


@hookimpl
def foundry_components() -> Iterable[type[ComponentSpec]]:
    """Offer the optimizer and the callback."""
    return [MuonSpec, MuonMonitorSpec]
