"""``inmemory``: keep the numbers in Python, for a notebook or a test."""

import attrs

from foundry_sdk.events import MetricsLogged, RunStarted, TableLogged
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.loggers.contract import LoggerSpec


@attrs.frozen(kw_only=True)
class InMemorySpec(LoggerSpec):
    """Fills its own ``metrics`` and ``tables`` on rank 0.

    >>> memory = InMemorySpec()
    >>> # Pretrainer(PretrainSpec(loggers=(memory,), ...)).fit()
    >>> memory.metrics.get("loss/train/total", [])
    []

    Attributes:
        metrics: by full key, (step, value) in the order of logging.
        tables: every table, in the order of logging.
    """

    kind = "inmemory"
    metrics: dict[str, list[tuple[int, float]]] = attrs.field(
        factory=dict, init=False, eq=False, repr=False
    )
    tables: list[TableLogged] = attrs.field(factory=list, init=False, eq=False, repr=False)

    def build(self, run: RunStarted) -> "InMemoryLogger":  # noqa: ARG002 - the family's signature
        """Return the logger."""
        return InMemoryLogger(self.metrics, self.tables)


class InMemoryLogger:
    """Appends to a dict and a list that somebody else reads."""

    key = InMemorySpec.kind

    def __init__(
        self, metrics: dict[str, list[tuple[int, float]]], tables: list[TableLogged]
    ) -> None:
        """Fill ``metrics`` and ``tables``."""
        self._metrics = metrics
        self._tables = tables

    @hookimpl
    def metrics_logged(self, event: MetricsLogged) -> None:
        """Append each number."""
        for name, value in event.metrics.items():
            self._metrics.setdefault(name, []).append((event.step, value))

    @hookimpl
    def table_logged(self, event: TableLogged) -> None:
        """Append the table."""
        self._tables.append(event)
