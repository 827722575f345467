"""Checks of callbacks and loggers: a short run by hand, and their state through a checkpoint."""

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from foundry_sdk.callbacks.bus import EventBus
from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.errors import PluginError, RunError
from foundry_sdk.events import (
    CheckpointSaved,
    EvaluationFinished,
    EvaluationStarted,
    Fail,
    GradientsReady,
    MetricsLogged,
    RunFinished,
    RunStarted,
    Skip,
    StepStarted,
    Stop,
    TableLogged,
)
from foundry_sdk.hookspecs import RunEvents
from foundry_sdk.loggers.contract import LoggerSpec
from foundry_sdk.testing.failure import ConformanceError, expect, name_of
from foundry_sdk.testing.moments import tiny_run, tiny_step

_STEPS = 12
_SAVED_AFTER = 6


def check_callback(spec: CallbackSpec | LoggerSpec, run: RunStarted | None) -> None:
    """Take what the spec builds through a run of twelve steps, and through one resumed at six.

    Args:
        spec: of a callback or logger.
        run: what it is built for; None = ``tiny_run()``.

    Raises:
        ConformanceError: it hears nothing, answers what a run does not understand, fails, or its
            state is not JSON or not all of it.
    """
    run = tiny_run() if run is None else run
    subscriber = spec.build(run)
    _check_hooks(spec, subscriber)
    bus = _bus(spec, subscriber)
    try:
        bus.run_started(run)
        for step in range(1, _SAVED_AFTER + 1):
            _step(bus, step)
        saved = _json(spec, bus.state_dict())
        resumed = attrs.evolve(run, step=run.step + _SAVED_AFTER)
        restored = _bus(spec, spec.build(resumed))
        restored.load_state_dict(saved)
        expect(
            _json(spec, restored.state_dict()) == saved,
            spec,
            f"load_state_dict does not bring back what state_dict gave ({saved!r})",
        )
        restored.run_started(resumed)
        for step in range(_SAVED_AFTER + 1, _STEPS + 1):
            told, told_again = _step(bus, step), _step(restored, step)
            expect(
                not saved or _decisions(told) == _decisions(told_again),
                spec,
                f"after load_state_dict it answers step {step} with {_decisions(told_again)!r} "
                f"instead of {_decisions(told)!r}; put all that answers depend on into state_dict",
            )
        for each in (bus, restored):
            each.run_finished(RunFinished(step=_STEPS, seconds=6.0, stopped_by=None))
    except RunError as error:
        raise ConformanceError(f"{name_of(spec)}: {error}") from error


def _check_hooks(spec: CallbackSpec | LoggerSpec, subscriber: object) -> None:
    moments = {name for name in vars(RunEvents) if not name.startswith("_")}
    marked = {
        name
        for name in dir(type(subscriber))
        if hasattr(getattr(type(subscriber), name, None), "foundry_sdk_impl")
    }
    unmarked = {name for name in moments if callable(getattr(subscriber, name, None))} - marked
    expect(
        not unmarked,
        spec,
        f"{', '.join(sorted(unmarked))} would never be called; mark it with @hookimpl",
    )
    expect(
        marked,
        spec,
        "it hears of nothing; give what build returns @hookimpl methods such as step_finished",
    )


def _bus(spec: CallbackSpec | LoggerSpec, subscriber: object) -> EventBus:
    try:
        return EventBus([subscriber])
    except PluginError as error:
        raise ConformanceError(f"{name_of(spec)}: {error}") from error


def _json(spec: CallbackSpec | LoggerSpec, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state as a checkpoint would give it back."""
    try:
        back: dict[str, Any] = json.loads(json.dumps(copy.deepcopy(state), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConformanceError(
            f"{name_of(spec)}: its state is saved as JSON, but {error}: {state!r}; let state_dict "
            "return finite numbers, texts, lists and mappings"
        ) from error
    expect(
        back == state,
        spec,
        f"its state {state!r} comes back from JSON as {back!r}; use lists instead of tuples, and "
        "texts as keys",
    )
    return back


def _step(bus: EventBus, step: int) -> list[object]:
    """Tell of everything that may happen in a step; return all answers."""
    answers: list[object] = []
    event = tiny_step(step)
    bus.step_started(StepStarted(step=step, epoch=(step - 1) // 10))
    answers += bus.gradients_ready(
        GradientsReady(
            step=step,
            loss=2.0 + 1.0 / step,
            gradient_norm=1.0,
            sample_ids=(4 * step, 4 * step + 1),
            last_checkpoint=None,
        )
    )
    answers += bus.step_finished(event)
    bus.metrics_logged(MetricsLogged(step=step, metrics={"loss/train/total": 2.0 + 1.0 / step}))
    if step % 3 == 0:
        bus.evaluation_started(EvaluationStarted(step=step, label="eval", batches=2))
        answers += bus.evaluation_finished(
            EvaluationFinished(
                step=step,
                epoch=event.epoch,
                label="eval",
                metrics={"metrics/eval/LanguageCrossEntropy": 2.5 + 1.0 / step},
                seconds=0.5,
            )
        )
        path = Path(f"step-{step:06d}")
        bus.checkpoint_saved(CheckpointSaved(step=step, path=path, seconds=0.1, bytes=1000))
        rows = (("a", "b"),)
        bus.table_logged(TableLogged(step=step, name="t", columns=("x", "y"), rows=rows))
    return answers


def _decisions(answers: Iterable[object]) -> list[object]:
    """Return the answers that change a run; metrics may be of the process's own time."""
    return [answer for answer in answers if isinstance(answer, Stop | Skip | Fail)]
