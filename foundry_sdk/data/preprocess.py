"""Preprocessors made of plain functions, offered as components or named by their import path."""

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from foundry_sdk.data.contract import Preprocess, PreprocessorSpec, PromptResponse
from foundry_sdk.errors import DataError


def preprocessor(kind: str) -> Callable[[Preprocess], type[PreprocessorSpec]]:
    """Make a plain function the component ``kind`` (by custom, the dataset's hub name)."""

    def decorate(function: Preprocess) -> type[PreprocessorSpec]:
        def build(_: PreprocessorSpec) -> Preprocess:
            return function

        members = {
            "kind": kind,
            "build": build,
            "__doc__": function.__doc__,
            "__module__": function.__module__,
        }
        return attrs.frozen(kw_only=True)(type(function.__name__, (PreprocessorSpec,), members))

    return decorate


def is_import_path(name: str) -> bool:
    """Tell ``package.module:function`` from the kind of a preprocessor."""
    module, colon, function = name.partition(":")
    dotted = all(part.isidentifier() for part in module.split("."))
    return bool(colon) and dotted and function.isidentifier()


def import_function(path: str) -> Preprocess:
    """Return the function that ``package.module:function`` names.

    Modules of the working directory are found too, after all installed ones.

    Raises:
        DataError: there is no such module or function, or the module fails when imported.
    """
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise DataError(
            f"preprocessing_fn: {path!r}: the module {module_name!r} cannot be imported "
            f"({type(error).__name__}: {error}); it must be installed, or lie in the working "
            f"directory {here}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    function: Any = getattr(module, name, None)
    if isinstance(function, type) and issubclass(function, PreprocessorSpec):
        function = function().build()  # the decorator @preprocessor has made it a component
    if not callable(function):
        offered = [each for each in vars(module) if callable(getattr(module, each))]
        near = difflib.get_close_matches(name, offered, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"preprocessing_fn: {path!r}: {module_name!r} has no function {name!r}{hint}"
        )
    made: Preprocess = function
    return made


@attrs.frozen
class ColumnNames:
    """Takes prompt and response from columns of other names."""

    prompt: str
    response: str

    def __call__(self, row: Mapping[str, Any]) -> PromptResponse:
        """Return the two columns.

        Raises:
            DataError: the row has no such column.
        """
        for column in (self.prompt, self.response):
            if column not in row:
                raise DataError(
                    f"preprocessing_fn: no column {column!r}; the row has {', '.join(row)}"
                )
        return {"prompt": row[self.prompt], "response": row[self.response]}
