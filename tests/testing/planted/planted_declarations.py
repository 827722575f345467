"""Components that are declared wrongly, each in one way. Importing this loads no torch."""

from collections.abc import Mapping
from typing import Any

import attrs

from foundry_sdk.data.contract import Preprocess, PreprocessorSpec


def echo(row: Mapping[str, Any]) -> Any:
    return {"prompt": row["q"], "response": row["a"]}


class Plain(PreprocessorSpec):
    """Is no attrs class."""

    kind = "plain"

    def build(self) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True)
class Unnamed(PreprocessorSpec):
    """Has no kind."""

    def build(self) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True)
class Spaced(PreprocessorSpec):
    """Has a kind of two words."""

    kind = "two words"

    def build(self) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True)
class Elsewhere(PreprocessorSpec):
    """Says it is of another family."""

    family = "optimizer"
    kind = "elsewhere"

    def build(self) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True)
class Abstract(PreprocessorSpec):
    """Has no build."""

    kind = "abstract"


@attrs.frozen
class Positional(PreprocessorSpec):
    """Takes a value by position."""

    kind = "positional"
    number: int = 1

    def build(self) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True)
class Mutable(PreprocessorSpec):
    """Can be changed."""

    kind = "mutable"

    def build(self) -> Preprocess:
        return echo


Mutable.__setattr__ = object.__setattr__  # type: ignore[method-assign]


@attrs.frozen(kw_only=True)
class Tagged(PreprocessorSpec):
    """Has a field that is YAML's tag."""

    kind = "tagged"
    name: str = "x"

    def build(self) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True)
class Silent(PreprocessorSpec):
    kind = "silent"

    def build(self) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True)
class Mumbling(PreprocessorSpec):
    """makes something of rows, and then"""

    kind = "mumbling"

    def build(self) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True)
class Demanding(PreprocessorSpec):
    """Wants more than a run gives."""

    kind = "demanding"

    def build(self, tokenizer: object) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True)
class Homeless(PreprocessorSpec):
    """Is defined nowhere."""

    kind = "homeless"

    def build(self) -> Preprocess:
        return echo


Homeless.__module__ = "no_such_module"


@attrs.frozen(kw_only=True)
class Untyped(PreprocessorSpec):
    """Has a field without a type."""

    kind = "untyped"
    number = attrs.field(default=1)

    def build(self) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True)
class Unreadable(PreprocessorSpec):
    """Has a field that YAML cannot hold."""

    kind = "unreadable"
    number: complex = 1j

    def build(self) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True)
class Mistyped(PreprocessorSpec):
    """Has a default of another type."""

    kind = "mistyped"
    number: int = "one"  # type: ignore[assignment]

    def build(self) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True)
class Growing(PreprocessorSpec):
    """Changes its value each time it is made."""

    kind = "growing"
    number: int = attrs.field(default=1, converter=lambda value: value + 1)

    def build(self) -> Preprocess:
        return echo


@attrs.frozen(kw_only=True, eq=False)
class Unequal(PreprocessorSpec):
    """Is compared by identity."""

    kind = "unequal"

    def build(self) -> Preprocess:
        return echo


def make_local() -> type[PreprocessorSpec]:
    @attrs.frozen(kw_only=True)
    class Local(PreprocessorSpec):
        """Is defined inside of a function."""

        kind = "local"

        def build(self) -> Preprocess:
            return echo

    return Local


Local = make_local()
