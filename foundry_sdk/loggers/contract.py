"""What loggers promise."""

from abc import abstractmethod

import attrs

from foundry_sdk.component import ComponentSpec
from foundry_sdk.events import RunStarted


@attrs.frozen(kw_only=True)
class LoggerSpec(ComponentSpec):
    """Family of loggers (``loggers:``, a mapping from kind to fields). Rank 0 only."""

    family = "logger"

    @abstractmethod
    def build(self, run: RunStarted) -> object:
        """Return an object with ``@hookimpl`` methods such as ``metrics_logged``."""
