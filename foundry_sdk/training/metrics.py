"""From a step's numbers to the metrics that are logged, and from answers to stops."""

import math
from collections.abc import Iterable, Mapping

from foundry_sdk.callbacks.bus import EventBus
from foundry_sdk.events import (
    Answer,
    MetricsLogged,
    StepFinished,
    Stop,
    Table,
    TableLogged,
)


def train_metrics(event: StepFinished, *, is_cross_entropy: bool) -> dict[str, float]:
    """Return the loop's own metrics of a step; nothing at a step that read nothing.

    Args:
        event: of the step.
        is_cross_entropy: the loss is the cross-entropy alone.
    """
    if event.loss is None:
        return {}
    metrics = {
        "loss/train/total": event.loss,
        "trainer/device_train_microbatch_size": float(event.microbatch),
        "time/epoch": float(event.epoch),
        "time/batch": float(event.step),
        "time/sample": float(event.samples),
        "time/token": float(event.tokens),
    }
    if is_cross_entropy:
        metrics["metrics/train/LanguageCrossEntropy"] = event.loss
        metrics["metrics/train/LanguagePerplexity"] = perplexity(event.loss)
    if event.gradient_norm is not None:
        metrics["l2_norm/grad/global"] = event.gradient_norm
    if event.skipped is not None:
        metrics["trainer/skipped_update"] = 1.0
    return metrics


class Reporter:
    """Hands metrics and tables to the loggers (rank 0) and returns the first stop."""

    def __init__(self, bus: EventBus, *, rank: int) -> None:
        self._bus = bus
        self._rank = rank

    def __call__(
        self, step: int, answers: Iterable[Answer], metrics: Mapping[str, float]
    ) -> Stop | None:
        """Log ``metrics`` together with those among ``answers``."""
        merged, tables, stop = dict(metrics), list[Table](), None
        for answer in answers:
            if isinstance(answer, Stop):
                stop = stop or answer
            elif isinstance(answer, Table):
                tables.append(answer)
            else:
                merged.update(answer)
        if self._rank == 0:
            if merged:
                self._bus.metrics_logged(MetricsLogged(step=step, metrics=merged))
            for table in tables:
                self._bus.table_logged(
                    TableLogged(step=step, name=table.name, columns=table.columns, rows=table.rows)
                )
        return stop


def perplexity(cross_entropy: float) -> float:
    """Return exp(nats), infinite where a float cannot hold it."""
    try:
        return math.exp(cross_entropy)
    except OverflowError:
        return math.inf
