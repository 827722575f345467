"""Data: conversion to MDS shards, loaders and preprocessors.

The public names are found when they are first used, so that importing this package is quick.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from foundry_sdk.data.card import DataCard as DataCard
    from foundry_sdk.data.convert.finetuning import convert_finetuning as convert_finetuning
    from foundry_sdk.data.convert.functions import convert_hf as convert_hf
    from foundry_sdk.data.convert.functions import convert_json as convert_json
    from foundry_sdk.data.convert.functions import convert_text as convert_text
    from foundry_sdk.data.convert.options import ConversionOptions as ConversionOptions
    from foundry_sdk.data.convert.run import ConversionProgress as ConversionProgress

_HOMES: Final = MappingProxyType(
    {
        "foundry_sdk.data.card": ("DataCard",),
        "foundry_sdk.data.convert.finetuning": ("convert_finetuning",),
        "foundry_sdk.data.convert.functions": ("convert_hf", "convert_json", "convert_text"),
        "foundry_sdk.data.convert.options": ("ConversionOptions",),
        "foundry_sdk.data.convert.run": ("ConversionProgress",),
    }
)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562: the type checker reads the imports
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(name for names in _HOMES.values() for name in names)
