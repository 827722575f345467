"""The component contract: a frozen spec that carries a ``kind`` and builds one thing."""

from abc import ABC
from typing import ClassVar

import attrs


@attrs.frozen(kw_only=True)
class ComponentSpec(ABC):
    """Base of every spec that YAML names with ``name:``.

    A family (``ModelSpec``, ``LossSpec`` …) sets ``family`` and an abstract, typed ``build``; a
    component sets ``kind`` and implements it. Subclasses are decorated with
    ``@attrs.frozen(kw_only=True)``. Importing a spec's module must not import a heavy library.
    """

    family: ClassVar[str]
    kind: ClassVar[str]
