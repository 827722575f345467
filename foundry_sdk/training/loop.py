"""The loop: draw a batch, forward, backward, clip, update; report, evaluate, save."""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from foundry_sdk.events import (
    EvaluationFinished,
    EvaluationStarted,
    StepFinished,
    StepStarted,
    Stop,
)
from foundry_sdk.training.evaluate import evaluate
from foundry_sdk.training.feed import Drawn, Feed
from foundry_sdk.training.metrics import Reporter, train_metrics
from foundry_sdk.training.plan import Clock, due
from foundry_sdk.training.step import forward_backward
from foundry_sdk.training.update import Updated, Updater

if TYPE_CHECKING:
    from foundry_sdk.training.assemble import Assembly


@attrs.frozen(kw_only=True)
class LoopResult:
    """How the loop ended: ``stopped_by`` is None after the whole duration."""

    stopped_by: str | None
    last_loss: float | None
    eval_metrics: dict[str, float]


class Loop:
    """Trains until the run's duration is over or something asks it to stop.

    Args:
        assembly: everything that a run is made of.
        feed: its batches, at the position where the run is.
        save: writes a checkpoint of the present state and returns its folder.
        stop_requested: whether this process was told to end (a signal), and by what.
    """

    def __init__(
        self,
        assembly: "Assembly",
        *,
        feed: Feed,
        save: Callable[[Drawn | None], Path],
        stop_requested: Callable[[], str | None],
    ) -> None:
        self.a = assembly
        self.state = assembly.state
        self.runtime = assembly.runtime
        self.feed = feed
        self.report = Reporter(assembly.bus, rank=self.runtime.rank)
        self.eval_metrics: dict[str, float] = {}
        self.loss: float | None = None
        self.update = Updater(assembly)
        self._stop: Stop | None = None
        self._save = save
        self._stop_requested = stop_requested

    def run(self) -> LoopResult:
        """Train, evaluate and save until the end; every rank returns the same."""
        spec, drawn, stop = self.a.spec, None, None
        saved_at, evaluated_at = self.state.step, -1
        if spec.eval_first and self.state.step == 0:
            stop = self._evaluate()
        while stop is None and not self.state.clock().reached(spec.max_duration):
            before = self.state.clock()
            drawn = self.feed.take()
            stop = self._step(drawn, before)
            now = self.state.clock()
            if self.a.evaluators and due(spec.eval_interval, before, now, self.a.total_steps):
                stop, evaluated_at = self._evaluate() or stop, now.step
            signal = self._agreed_signal()
            stop = stop or (Stop(reason=signal) if signal else None)
            if stop or due(spec.save_interval, before, now, self.a.total_steps):
                saved_at = self._checkpoint(drawn)
        if self.a.evaluators and evaluated_at != self.state.step and stop is None:
            stop = self._evaluate()
        if saved_at != self.state.step:
            self._checkpoint(drawn)
        return LoopResult(
            stopped_by=stop.reason if stop else None,
            last_loss=self.loss,
            eval_metrics=self.eval_metrics,
        )

    def _step(self, drawn: Drawn, before: Clock) -> Stop | None:
        started = time.perf_counter()
        self.a.bus.step_started(StepStarted(step=before.step + 1, epoch=before.epoch))
        total = self.a.microbatching.forward_backward(
            drawn, functools.partial(forward_backward, self.a)
        )
        logs = due(
            self.a.spec.console_log_interval, before, self._after(drawn, 0.0), self.a.total_steps
        )
        updated = self.update(
            drawn,
            total,
            needed=logs or before.step == 0,
            meanwhile=lambda: None if self._is_last(drawn) else self.feed.draw_ahead(),
        )
        self._stop = self._stop or updated.stop
        step_seconds = time.perf_counter() - started
        self._advance(drawn, step_seconds)
        return self._finished(drawn, updated, step_seconds)

    def _advance(self, drawn: Drawn, seconds: float) -> None:
        if drawn.starts_epoch:
            self.state.epoch += 1
            self.state.batch_in_epoch = 0
        self.state.step += 1
        self.state.samples += drawn.samples
        self.state.tokens += drawn.tokens
        self.state.batch_in_epoch += 1
        self.state.seconds += seconds
        if drawn.ends_epoch:
            self.state.epoch += 1
            self.state.batch_in_epoch = 0

    def _after(self, drawn: Drawn, seconds: float) -> Clock:
        """Return where the run will be after the step of ``drawn``."""
        return Clock(
            step=self.state.step + 1,
            epoch=self.state.epoch + int(drawn.ends_epoch) + int(drawn.starts_epoch),
            samples=self.state.samples + drawn.samples,
            tokens=self.state.tokens + drawn.tokens,
            seconds=self.state.seconds + seconds,
        )

    def _is_last(self, drawn: Drawn) -> bool:
        return self._after(drawn, 0.0).reached(self.a.spec.max_duration)

    def _finished(
        self,
        drawn: Drawn,
        updated: Updated,
        seconds: float,
    ) -> Stop | None:
        reading, skip = updated.reading, updated.skip
        event = StepFinished(
            step=self.state.step,
            epoch=self.state.epoch,
            batch_in_epoch=self.state.batch_in_epoch,
            samples=self.state.samples,
            tokens=self.state.tokens,
            step_samples=drawn.samples,
            step_tokens=drawn.tokens,
            step_labels=drawn.labels,
            loss=reading.loss,
            gradient_norm=reading.gradient_norm,
            lrs=updated.lrs,
            optimizer=type(self.a.optimizer).__name__,
            microbatch=self.a.microbatching.size,
            seconds=self.state.seconds,
            step_seconds=seconds,
            data_seconds=self.feed.pop_wait(),
            skipped=skip.reason if skip else None,
        )
        if reading.loss is not None:
            self.loss = reading.loss
        metrics = train_metrics(event, is_cross_entropy=self.a.core.loss.is_cross_entropy())
        stop = self.report(self.state.step, self.a.bus.step_finished(event), metrics)
        return self._stop or stop

    def _evaluate(self) -> Stop | None:
        stops: list[Stop | None] = []
        for evaluator in self.a.evaluators:
            step, label = self.state.step, evaluator.label
            started = EvaluationStarted(
                step=step,
                label=label,
                batches=evaluator.batches or evaluator.source.batches_per_epoch(),
            )
            self.a.bus.evaluation_started(started)
            found = evaluate(self.a.objective, evaluator, self.runtime, loss=self.a.core.loss)
            self.eval_metrics.update(found.metrics)
            finished = EvaluationFinished(
                step=step,
                epoch=self.state.epoch,
                label=label,
                metrics=found.metrics,
                seconds=found.seconds,
            )
            answers = self.a.bus.evaluation_finished(finished)
            stops.append(self.report(step, answers, found.metrics))
        return _first(stops)

    def _checkpoint(self, drawn: Drawn | None) -> int:
        self.update.last_checkpoint = self._save(drawn)
        return self.state.step

    def _agreed_signal(self) -> str | None:
        """Return why to stop, if any rank was told to; the same on all ranks."""
        reason = self._stop_requested()
        if not self.runtime.any_rank(reason is not None):
            return None
        reasons: list[str | None] = self.runtime.gather(reason)
        return next(text for text in reasons if text)


def _first(stops: Sequence[Stop | None]) -> Stop | None:
    return next((stop for stop in stops if stop is not None), None)
