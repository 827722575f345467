"""Docstrings as prompts, functions as responses: a plugin of foundry-sdk."""

from collections.abc import Iterable

from foundry_sdk.component import ComponentSpec
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk_code_instruct.functions import DocumentedFunction as DocumentedFunction
from foundry_sdk_code_instruct.functions import documented_functions as documented_functions
from foundry_sdk_code_instruct.mining import mine as mine
from foundry_sdk_code_instruct.preprocessor import CodeInstructSpec


@hookimpl
def foundry_components() -> Iterable[type[ComponentSpec]]:
    """Offer the preprocessor."""
    return [CodeInstructSpec]
