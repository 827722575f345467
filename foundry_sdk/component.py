"""The component contract: a frozen spec that carries a ``kind`` and builds one thing."""

from abc import ABC
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import attrs


@attrs.frozen(kw_only=True)
class ComponentSpec(ABC):
    """Base of every spec that YAML names with ``name:``.

    A family (``ModelSpec``, ``LossSpec`` …) sets ``family`` and an abstract, typed ``build``; a
    component sets ``kind`` and implements it. Subclasses are decorated with
    ``@attrs.frozen(kw_only=True)``. Importing a spec's module must not import a heavy library.

    ``without_effect`` names keys that old YAML files have and that can do nothing here, each with
    the reason: they are accepted with one line saying so. (A nested class of fields may have it
    too.)
    """

    family: ClassVar[str]
    kind: ClassVar[str]
    without_effect: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def notes(self) -> tuple[str, ...]:
        """Return what of this spec is replaced or has no effect, one line each."""
        return ()
