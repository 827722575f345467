"""How a command of several steps says where it is."""

import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

if TYPE_CHECKING:
    from rich.console import Console


class ConsoleNarrator:
    """A headline per step, a bar below it while it lasts where there is a terminal."""

    def __init__(self, console: "Console", *, steps: int) -> None:
        """Write to ``console``; there are ``steps`` steps."""
        self._console = console
        self._steps = steps
        self._step = 0
        self._began = 0.0
        self._bar: Progress | None = None

    def begin(self, title: str) -> None:
        """Print the headline."""
        self._step += 1
        self._began = time.monotonic()
        self._console.print(f"\n[{self._step}/{self._steps}] {title}", style="bold", markup=False)

    def progress(self, fraction: float, text: str) -> None:
        """Move the bar; nothing where there is no terminal."""
        if not self._console.is_terminal:
            return
        if self._bar is None:
            self._bar = Progress(
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
                console=self._console,
                transient=True,
            )
            self._bar.add_task("", total=1.0)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=fraction, description=text)

    def end(self, text: str) -> None:
        """Take the bar away and print what came of the step."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        seconds = time.monotonic() - self._began
        self._console.print(f"      {text} ({seconds:.1f} s)", markup=False)
