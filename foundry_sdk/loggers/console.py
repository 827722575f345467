"""What a run prints: its numbers as lines of text, and a progress bar on a terminal."""

import sys
from collections import deque
from typing import TYPE_CHECKING, Final, TextIO

from foundry_sdk.events import (
    EvaluationFinished,
    EvaluationStarted,
    MetricsLogged,
    RunFinished,
    RunStarted,
    StepFinished,
    TableLogged,
)
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.intervals import Interval
from foundry_sdk.units import Duration, TimeUnit

if TYPE_CHECKING:
    from foundry_sdk.loggers.progress import ProgressBar

_INDENT: Final = " " * 9
# The three that come first, with the short names they are known by.
_SHORT: Final = {
    "metrics/train/LanguageCrossEntropy": "LanguageCrossEntropy",
    "metrics/train/LanguagePerplexity": "Perplexity",
    "loss/train/total": "loss/train/total",
}
# Four norms for each of hundreds of parameters are for a plot, not for reading.
_NORMS: Final = "l2_norm/"
_GLOBAL_NORM: Final = "l2_norm/grad/global"
# What the line's head says already.
_IN_HEAD: Final = frozenset({"time/batch", "time/epoch", "time/sample", "time/token"})
_RATE_WINDOW: Final = 20


class ConsoleLogger:
    """Prints the metrics logged since the last time, every ``interval`` and at the first moment.

    Norms by parameter are left to the other loggers.

    Numbers that a terminal's progress bar would overwrite are printed above it; anywhere else
    than on a terminal there is no bar, and lines are all that is written.
    """

    key = "console"

    def __init__(
        self,
        *,
        max_duration: Duration,
        total_steps: int | None,
        interval: Duration,
        progress_bar: bool,
        stream: TextIO | None = None,
    ) -> None:
        """Print to ``stream``, by default stderr.

        Args:
            max_duration: the run's; its unit is that of the line's head.
            total_steps: of the whole run; None where not known beforehand.
            interval: how often to print.
            progress_bar: show one where ``stream`` is a terminal.
            stream: any text stream.
        """
        self._stream = sys.stderr if stream is None else stream
        self._max_duration = max_duration
        self._total_steps = total_steps
        self._every = interval
        self._interval: Interval | None = None
        self._wants_bar = progress_bar and self._stream.isatty()
        self._bar: ProgressBar | None = None
        self._last: StepFinished | None = None
        self._pending: dict[str, float] = {}
        self._printed_before = False
        self._due = False
        self._rates: deque[tuple[int, float]] = deque(maxlen=_RATE_WINDOW)
        self._eval_batches: int | None = None

    @hookimpl
    def run_started(self, event: RunStarted) -> None:
        """Count from the run's first step here, and show the bar, if there is to be one."""
        self._interval = Interval(
            self._every,
            max_duration=self._max_duration,
            total_steps=self._total_steps,
            start_step=event.step,
        )
        if self._wants_bar:
            from foundry_sdk.loggers.progress import ProgressBar

            self._bar = ProgressBar(self._stream, total=self._total_steps, done=event.step)

    @hookimpl
    def step_finished(self, event: StepFinished) -> None:
        """Remember where the run is, and move the bar."""
        self._last = event
        self._due = self._due or (self._interval is not None and self._interval.fires(event))
        self._rates.append((event.step_tokens, event.step_seconds))
        if self._bar is not None:
            tokens = sum(tokens for tokens, _ in self._rates)
            seconds = sum(seconds for _, seconds in self._rates)
            rate = tokens / seconds if seconds > 0 else 0.0
            self._bar.update(event.step, loss=event.loss, tokens_per_second=rate)

    @hookimpl
    def metrics_logged(self, event: MetricsLogged) -> None:
        """Print, if it is time to; else keep the newest numbers for the next time."""
        train = {
            key: value
            for key, value in event.metrics.items()
            if not key.startswith("metrics/eval")
            and key not in _IN_HEAD
            and (key == _GLOBAL_NORM or not key.startswith(_NORMS))
        }
        self._pending |= train
        if self._last is None or not train:
            return
        if self._due or not self._printed_before:
            self._print_pending(self._last)

    @hookimpl
    def evaluation_started(self, event: EvaluationStarted) -> None:
        """Say so on the bar."""
        self._eval_batches = event.batches
        if self._bar is not None:
            self._bar.describe(f"evaluating {_eval_name(event.label)}")

    @hookimpl
    def evaluation_finished(self, event: EvaluationFinished) -> None:
        """Print the eval loader's metrics."""
        if self._bar is not None:
            self._bar.describe("training")
        batches = "" if self._eval_batches is None else f"[Eval batch={self._eval_batches}/"
        batches += "" if self._eval_batches is None else f"{self._eval_batches}] "
        lines = [f"{batches}Eval on {_eval_name(event.label)} data:"]
        for key, value in event.metrics.items():
            lines.append(f"{_INDENT}Eval {_eval_key(key)}: {_number(value)}")
        self._write("\n".join(lines))

    @hookimpl
    def table_logged(self, event: TableLogged) -> None:
        """Print each row as ``column: text`` lines."""
        lines = [f"{event.name} at step {event.step}:"]
        for row in event.rows:
            cells = zip(event.columns, row, strict=True)
            lines += [f"{_INDENT}{column}: {text!r}" for column, text in cells]
        self._write("\n".join(lines))

    @hookimpl
    def run_finished(self, event: RunFinished) -> None:  # noqa: ARG002 - the moment is all
        """Print what is left, and take the bar away."""
        if self._pending and self._last is not None:
            self._print_pending(self._last)
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print_pending(self, event: StepFinished) -> None:
        ordered = {key: self._pending[key] for key in _SHORT if key in self._pending}
        ordered |= self._pending
        lines = [f"{self._head(event)}:"]
        for key, value in ordered.items():
            text = f"{value:.4f}" if key in _SHORT else _number(value)
            lines.append(f"{_INDENT}Train {_SHORT.get(key, key)}: {text}")
        self._write("\n".join(lines))
        self._pending.clear()
        self._printed_before, self._due = True, False

    def _head(self, event: StepFinished) -> str:
        unit = self._max_duration.unit
        if unit is TimeUnit.EPOCH:
            return self._epoch_head(event)
        if unit is TimeUnit.SAMPLE:
            return self._counter_head("sample", event.samples)
        if unit is TimeUnit.TOKEN:
            return self._counter_head("token", event.tokens)
        if unit is TimeUnit.SECOND:
            return self._counter_head("second", event.seconds)
        total = "" if self._total_steps is None else f"/{self._total_steps}"
        return f"[batch={event.step}{total}]"

    def _counter_head(self, name: str, done: float) -> str:
        return f"[{name}={int(done)}/{int(self._max_duration.value)}]"

    def _epoch_head(self, event: StepFinished) -> str:
        epochs = int(self._max_duration.value)
        if self._total_steps and self._total_steps % epochs == 0:
            per_epoch = self._total_steps // epochs
            epoch, batch = divmod(event.step - 1, per_epoch)
            return f"[epoch={epoch + 1}][batch={batch + 1}/{per_epoch}]"
        # Data without a known length: the batch that ends an epoch is not known to be the last.
        return f"[epoch={event.epoch + 1}][batch={event.batch_in_epoch}]"

    def _write(self, text: str) -> None:
        if self._bar is not None:
            self._bar.print_above(text)
            return
        self._stream.write(text + "\n")
        self._stream.flush()


def _eval_name(label: str) -> str:
    return label.removeprefix("eval/")


def _eval_key(key: str) -> str:
    """Shorten ``metrics/eval/c4/LanguagePerplexity`` to ``c4/Perplexity``."""
    short = key.removeprefix("metrics/").removeprefix("eval/")
    return short.replace("LanguagePerplexity", "Perplexity")


def _number(value: float) -> str:
    """Return four decimals, or four digits where those would be zeros, as of a learning rate."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
