"""Pretrain and finetune language models from typed specs and plugins.

The public names are found when they are first used, so that importing this package is quick.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from foundry_sdk.component import ComponentSpec as ComponentSpec
    from foundry_sdk.data.contract import TokenizerSpec as TokenizerSpec
    from foundry_sdk.data.preprocess import preprocessor as preprocessor
    from foundry_sdk.errors import CheckpointError as CheckpointError
    from foundry_sdk.errors import DataError as DataError
    from foundry_sdk.errors import ExportError as ExportError
    from foundry_sdk.errors import FoundryError as FoundryError
    from foundry_sdk.errors import PluginError as PluginError
    from foundry_sdk.errors import RunError as RunError
    from foundry_sdk.errors import SpecError as SpecError
    from foundry_sdk.hookspecs import hookimpl as hookimpl
    from foundry_sdk.units import Duration as Duration

__version__: Final = "0.1.0"

_HOMES: Final = MappingProxyType(
    {
        "foundry_sdk.component": ("ComponentSpec",),
        "foundry_sdk.data.contract": ("TokenizerSpec",),
        "foundry_sdk.data.preprocess": ("preprocessor",),
        "foundry_sdk.errors": (
            "CheckpointError",
            "DataError",
            "ExportError",
            "FoundryError",
            "PluginError",
            "RunError",
            "SpecError",
        ),
        "foundry_sdk.hookspecs": ("hookimpl",),
        "foundry_sdk.units": ("Duration",),
    }
)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562: the type checker reads the imports
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", *(name for names in _HOMES.values() for name in names)])
