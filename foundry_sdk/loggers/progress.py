"""A progress bar at the bottom of a terminal, with lines printed above it."""

from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressBar:
    """Steps done, loss, tokens per second, time gone and time left."""

    def __init__(self, stream: TextIO, *, total: int | None, done: int) -> None:
        """Show it; ``done`` steps of ``total`` (None: not known) are behind."""
        # The bar also takes over stdout and stderr, so that warnings appear above it.
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(file=stream),
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("training", total=total, completed=done, numbers="")
        self._loss = ""
        self._progress.start()

    def update(self, step: int, *, loss: float | None, tokens_per_second: float) -> None:
        """Move it; without a loss the last one stays."""
        if loss is not None:
            self._loss = f"loss {loss:.4f} "
        numbers = f"{self._loss}{tokens_per_second:,.0f} tok/s"
        self._progress.update(self._task, completed=step, numbers=numbers)

    def describe(self, text: str) -> None:
        """Say what is going on."""
        self._progress.update(self._task, description=text)

    def print_above(self, text: str) -> None:
        """Print plain text above the bar."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        self._progress.stop()
