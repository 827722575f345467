"""Optimizers and schedules; the optimizer classes load torch when they are first asked for."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from foundry_sdk.optim.adamw import AdamW, DecoupledAdamW
    from foundry_sdk.optim.adaptive_lion import DecoupledAdaLRLion, DecoupledClipLion
    from foundry_sdk.optim.lionw import DecoupledLionW
    from foundry_sdk.optim.no_op import NoOp

__all__ = [
    "AdamW",
    "DecoupledAdaLRLion",
    "DecoupledAdamW",
    "DecoupledClipLion",
    "DecoupledLionW",
    "NoOp",
]

_MODULES: Final = {
    "AdamW": "adamw",
    "DecoupledAdaLRLion": "adaptive_lion",
    "DecoupledAdamW": "adamw",
    "DecoupledClipLion": "adaptive_lion",
    "DecoupledLionW": "lionw",
    "NoOp": "no_op",
}


def __getattr__(name: str) -> object:
    """Import the optimizer class ``name``."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return found


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
