"""Who listens to a run: the spec's callbacks and loggers, and those that every run has."""

from collections.abc import Iterable

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.callbacks.guards import NaNMonitorSpec
from foundry_sdk.events import RunStarted
from foundry_sdk.loggers.announcer import Announcer
from foundry_sdk.loggers.console import ConsoleLogger
from foundry_sdk.loggers.jsonl import JsonlLogger
from foundry_sdk.specs.run import RunSpec


def subscribers(spec: RunSpec, started: RunStarted) -> Iterable[object]:
    """Yield callbacks, then on rank 0 the spec's loggers, the metrics file and the console."""
    yield from (callback.build(started) for callback in with_guards(spec.callbacks))
    if started.rank != 0:
        return
    yield from (logger.build(started) for logger in spec.loggers)
    if started.run_dir is not None:
        yield JsonlLogger(started.run_dir)
    if spec.log_to_console:
        yield ConsoleLogger(
            max_duration=started.max_duration,
            total_steps=started.total_steps,
            interval=spec.console_log_interval,
            progress_bar=spec.progress_bar,
        )
        yield Announcer(log_config=spec.log_config)


def with_guards(callbacks: Iterable[CallbackSpec]) -> tuple[CallbackSpec, ...]:
    """Return ``callbacks`` with a NaN guard in front, unless the spec has one of its own."""
    given = tuple(callbacks)
    if any(isinstance(callback, NaNMonitorSpec) for callback in given):
        return given
    return (NaNMonitorSpec(), *given)
