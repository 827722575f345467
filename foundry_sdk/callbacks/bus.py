"""Carries a run's events to its callbacks and loggers, in the spec's order."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pluggy
from pluggy import PluginValidationError

from foundry_sdk.errors import PluginError, RunError
from foundry_sdk.events import (
    Answer,
    CheckpointSaved,
    EvaluationFinished,
    EvaluationStarted,
    Fail,
    GradientsReady,
    MetricsLogged,
    RunFinished,
    RunStarted,
    Skip,
    StepFinished,
    StepStarted,
    Stop,
    Table,
    TableLogged,
)
from foundry_sdk.hookspecs import ENTRY_POINT_GROUP, RunEvents

_MOMENTS: Final = (
    "run_started",
    "step_started",
    "gradients_ready",
    "step_finished",
    "evaluation_started",
    "evaluation_finished",
    "checkpoint_saved",
    "metrics_logged",
    "table_logged",
    "run_finished",
)

_Receiver = tuple[str, Callable[[Any], Any]]


class EventBus:
    """One pluggy manager that lives for one run, called in spec order.

    A subscriber is known by its ``key`` attribute (our callbacks use their kind), or by its
    class's name; the key names it in errors and finds its saved state.
    """

    def __init__(self, subscribers: Sequence[object]) -> None:
        """Register ``subscribers``; the first one is called first.

        Raises:
            PluginError: a subscriber implements a moment that does not exist, asks for arguments
                that an event does not have, has half of the state protocol, or is listed twice.
        """
        self._subscribers: dict[str, object] = {}
        manager = pluggy.PluginManager(ENTRY_POINT_GROUP)
        manager.add_hookspecs(RunEvents)
        for subscriber in subscribers:
            self._subscribers[self._new_key(subscriber)] = subscriber
        # pluggy calls the newest plugin first, so the first subscriber is registered last.
        for key, subscriber in reversed(self._subscribers.items()):
            _register(manager, key, subscriber)
        self._receivers: dict[str, tuple[_Receiver, ...]] = {
            moment: _receivers(manager, moment) for moment in _MOMENTS
        }
        self._stateful: dict[str, Any] = {
            key: subscriber
            for key, subscriber in self._subscribers.items()
            if _has_state(key, subscriber)
        }

    @property
    def wants_gradients(self) -> bool:
        """Whether a subscriber implements ``gradients_ready``, for which a step waits."""
        return bool(self._receivers["gradients_ready"])

    @property
    def wants_finite_gradients(self) -> bool:
        """Whether a subscriber may refuse an update whose numbers are finite.

        One that does not says so by an attribute ``answers_only_non_finite = True``; the update
        may then be queued before it is asked.
        """
        return any(
            not getattr(self._subscribers[key], "answers_only_non_finite", False)
            for key, _ in self._receivers["gradients_ready"]
        )

    def run_started(self, event: RunStarted) -> None:
        """Tell that the first step is next."""
        self._tell("run_started", event)

    def step_started(self, event: StepStarted) -> None:
        """Tell that a step begins."""
        self._tell("step_started", event)

    def gradients_ready(self, event: GradientsReady) -> list[Skip | Stop | Fail]:
        """Ask whether the update may be made; no answer means yes."""
        answers: list[Skip | Stop | Fail] = []
        for key, function in self._receivers["gradients_ready"]:
            answer = _call(key, "gradients_ready", function, event)
            if answer is None:
                continue
            if not isinstance(answer, Skip | Stop | Fail):
                raise RunError(
                    f"callback {key!r} answered gradients_ready with {type(answer).__name__}; "
                    "expected Skip, Stop, Fail or None"
                )
            answers.append(answer)
        return answers

    def step_finished(self, event: StepFinished) -> list[Answer]:
        """Tell that an update was made; collect metrics, stops and tables."""
        return self._ask("step_finished", event)

    def evaluation_started(self, event: EvaluationStarted) -> None:
        """Tell that an eval loader begins."""
        self._tell("evaluation_started", event)

    def evaluation_finished(self, event: EvaluationFinished) -> list[Answer]:
        """Tell that an eval loader was gone through; collect metrics, stops and tables."""
        return self._ask("evaluation_finished", event)

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        """Tell that a checkpoint is committed."""
        self._tell("checkpoint_saved", event)

    def metrics_logged(self, event: MetricsLogged) -> None:
        """Hand numbers to the loggers (rank 0)."""
        self._tell("metrics_logged", event)

    def table_logged(self, event: TableLogged) -> None:
        """Hand rows of text to the loggers (rank 0)."""
        self._tell("table_logged", event)

    def run_finished(self, event: RunFinished) -> None:
        """Tell every subscriber that the run is over, whatever the others do.

        Raises:
            RunError: one or more subscribers raised; all of them were told before.
        """
        errors: list[RunError] = []
        for key, function in self._receivers["run_finished"]:
            try:
                _call(key, "run_finished", function, event)
            except RunError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise RunError("\n".join(str(error) for error in errors)) from errors[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON state of the subscribers that have one, by key."""
        return {key: subscriber.state_dict() for key, subscriber in self._stateful.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each subscriber its saved state back.

        A callback that is new in the spec has none and starts afresh; the state of one that is no
        longer in the spec is left alone.

        Raises:
            RunError: a callback can't take its state; the message names it.
        """
        for key, subscriber in self._stateful.items():
            if key in state:
                _call(key, "load_state_dict", subscriber.load_state_dict, state[key])

    def _new_key(self, subscriber: object) -> str:
        key = getattr(subscriber, "key", None)
        name = key if isinstance(key, str) and key else type(subscriber).__name__
        if any(subscriber is other for other in self._subscribers.values()):
            raise PluginError(f"callback {name!r} is the same object as one before it")
        number, unique = 1, name
        while unique in self._subscribers:
            number += 1
            unique = f"{name}#{number}"
        return unique

    def _tell(self, moment: str, event: object) -> None:
        for key, function in self._receivers[moment]:
            _call(key, moment, function, event)

    def _ask(self, moment: str, event: object) -> list[Answer]:
        answers: list[Answer] = []
        for key, function in self._receivers[moment]:
            answer = _call(key, moment, function, event)
            if answer is not None:
                answers.append(_checked(key, moment, answer))
        return answers


def _register(manager: pluggy.PluginManager, key: str, subscriber: object) -> None:
    try:
        manager.register(subscriber, name=key)
        manager.check_pending()
    except PluginValidationError as error:
        raise PluginError(
            f"callback {key!r}: {error}; moments are {', '.join(_MOMENTS)}, each with one "
            "argument, 'event'"
        ) from error
    except ValueError as error:
        raise PluginError(
            f"callback {key!r} equals another callback of this run; callbacks are told apart by "
            "identity, so its class must not define __eq__ (attrs: eq=False)"
        ) from error


def _receivers(manager: pluggy.PluginManager, moment: str) -> tuple[_Receiver, ...]:
    # pluggy's own call loop hides which plugin raised, so the functions are called from here, in
    # the order (reversed, by pluggy's convention) that it keeps, tryfirst and trylast included.
    receivers: list[_Receiver] = []
    for implementation in reversed(getattr(manager.hook, moment).get_hookimpls()):
        if implementation.wrapper or implementation.hookwrapper:
            raise PluginError(
                f"callback {implementation.plugin_name!r}: {moment} is a hook wrapper; a callback "
                "cannot wrap others, use a plain @hookimpl"
            )
        function = implementation.function
        takes_event = bool(implementation.argnames)
        receivers.append(
            (implementation.plugin_name, function if takes_event else _without_event(function))
        )
    return tuple(receivers)


def _without_event(function: Callable[[], Any]) -> Callable[[Any], Any]:
    def call(_: object) -> Any:  # noqa: ANN401 - an answer of unknown type, checked by the caller
        return function()

    return call


def _has_state(key: str, subscriber: object) -> bool:
    saves, loads = (
        callable(getattr(subscriber, method, None)) for method in ("state_dict", "load_state_dict")
    )
    if saves != loads:
        raise PluginError(
            f"callback {key!r} has only one of state_dict and load_state_dict; it needs both, or "
            "neither"
        )
    return saves


def _call(key: str, moment: str, function: Callable[[Any], Any], event: object) -> Any:  # noqa: ANN401
    try:
        return function(event)
    except Exception as error:
        raise RunError(
            f"callback {key!r} failed at {moment}: {type(error).__name__}: {error}"
        ) from error


def _checked(key: str, moment: str, answer: object) -> Answer:
    if isinstance(answer, Stop | Table):
        return answer
    if not isinstance(answer, Mapping):
        raise RunError(
            f"callback {key!r} answered {moment} with {type(answer).__name__}; expected a mapping "
            "of metrics, Stop, Table or None"
        )
    for name, value in answer.items():
        if (
            not isinstance(name, str)
            or isinstance(value, bool)
            or not isinstance(value, int | float)
        ):
            raise RunError(
                f"callback {key!r} answered {moment} with {name!r}: {value!r}; a metric is a "
                "string and a Python number"
            )
    return answer
