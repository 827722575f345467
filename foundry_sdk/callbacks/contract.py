"""What callbacks promise."""

from abc import abstractmethod

import attrs

from foundry_sdk.component import ComponentSpec
from foundry_sdk.events import RunStarted


@attrs.frozen(kw_only=True)
class CallbackSpec(ComponentSpec):
    """Family of callbacks (``callbacks:``, a mapping from kind to fields)."""

    family = "callback"

    @abstractmethod
    def build(self, run: RunStarted) -> object:
        """Return an object with ``@hookimpl`` methods of ``RunEvents``.

        If it also has ``state_dict() -> dict`` and ``load_state_dict(dict)`` (JSON values), its
        state is saved and restored with the checkpoint.
        """
