"""How ``foundry data convert`` shows its progress: a bar on a terminal, plain lines elsewhere."""

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foundry_sdk.data.convert.run import ConversionProgress, Report

_SECONDS_BETWEEN_LINES: Final = 10.0


@contextmanager
def showing_progress() -> "Iterator[Report]":
    """Yield the function that a conversion calls with its progress."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
        ) as progress:
            yield _Bars(progress)
        return
    yield _Lines(console)


def progress_text(progress: "ConversionProgress") -> str:
    """Return the numbers of a conversion in one line."""
    parts = [] if progress.fraction is None else [f"{progress.fraction:.1%}"]
    if progress.tokens is None:
        parts += [f"{progress.samples:,} documents"]
    else:
        parts += [f"{progress.tokens:,} tokens", f"{progress.samples:,} rows"]
    unit = "documents" if progress.tokens is None else "tokens"
    parts.append(f"{progress.tokens_per_second:,.0f} {unit}/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration_text(progress.seconds_left)} left")
    return ", ".join(parts)


def duration_text(seconds: float) -> str:
    """Return a duration such as "1:02:03" or "0:41"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Bars:
    """One bar a split."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._split: str | None = None

    def __call__(self, progress: "ConversionProgress") -> None:
        if self._split != progress.split:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._progress.add_task(progress.split or "converting", total=None, text="")
            self._split = progress.split
        self._progress.update(
            self._progress.task_ids[-1],
            total=None if progress.fraction is None else 1.0,
            completed=progress.fraction or 0.0,
            text=progress_text(progress),
        )


class _Lines:
    """A line every ten seconds: enough for a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = time.monotonic()

    def __call__(self, progress: "ConversionProgress") -> None:
        now = time.monotonic()
        if now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = now
        name = f"{progress.split}: " if progress.split else ""
        self._console.print(f"{name}{progress_text(progress)}", highlight=False, soft_wrap=True)
