"""Preprocessors made of plain functions."""

from collections.abc import Callable

import attrs

from foundry_sdk.data.contract import Preprocess, PreprocessorSpec


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
