"""From a run's events to one of Accelerate's trackers."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from foundry_sdk.errors import RunError
from foundry_sdk.events import MetricsLogged, RunFinished, RunStarted, TableLogged
from foundry_sdk.hookspecs import hookimpl

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

LogTable = Callable[[TableLogged], None]


class TrackerLogger:
    """Hands numbers, tables and the run's configuration to a started tracker.

    The configuration is ``RunStarted.resolved_spec``, from which secrets are redacted, and what
    was chosen for the user.
    """

    def __init__(
        self, tracker: "GeneralTracker", *, key: str, log_table: LogTable, nested_config: bool
    ) -> None:
        """Use ``tracker``, which has been started.

        Args:
            tracker: one of ``accelerate.tracking``.
            key: names the logger in errors.
            log_table: how this service takes a table.
            nested_config: whether it takes nested mappings, or dotted keys alone.
        """
        self._tracker: Any = tracker
        self.key = key
        self._log_table = log_table
        self._nested_config = nested_config

    @hookimpl
    def run_started(self, event: RunStarted) -> None:
        """Store the configuration."""
        config: Mapping[str, Any] = {**event.resolved_spec, "chosen": dict(event.choices)}
        self._tracker.store_init_configuration(
            dict(config) if self._nested_config else flatten(config)
        )

    @hookimpl
    def metrics_logged(self, event: MetricsLogged) -> None:
        """Send the numbers."""
        self._tracker.log(dict(event.metrics), step=event.step)

    @hookimpl
    def table_logged(self, event: TableLogged) -> None:
        """Send the rows."""
        self._log_table(event)

    @hookimpl
    def run_finished(self, event: RunFinished) -> None:  # noqa: ARG002 - the moment is all
        """Send what is left and close."""
        self._tracker.finish()


def require(kind: str, module: str, package: str) -> None:
    """Raise unless ``module`` can be imported.

    Raises:
        RunError: it is not installed; the message says how to install it.
    """
    if find_spec(module) is None:
        raise RunError(
            f"loggers.{kind}: the package {package!r} is not installed; `pip install {package}`, "
            f"or leave the logger out"
        )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return nested values under dotted keys; None is left out, sequences become text."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, bool | int | float | str):
            flat[name] = value
        elif value is not None:
            flat[name] = str(value)
    return flat


def markdown(table: TableLogged) -> str:
    """Return a table as Markdown; line breaks and bars inside a cell are escaped."""
    rows = [table.columns, ("---",) * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")
