"""The bus: order, answers, errors that name the callback, state."""

from typing import Any

import attrs
import pytest

from foundry_sdk.callbacks.bus import EventBus
from foundry_sdk.errors import PluginError, RunError
from foundry_sdk.events import (
    Fail,
    GradientsReady,
    MetricsLogged,
    RunFinished,
    Skip,
    StepStarted,
    Stop,
    Table,
)
from foundry_sdk.hookspecs import RunEvents, hookimpl

GRADIENTS = GradientsReady(
    step=1, loss=2.0, gradient_norm=1.0, sample_ids=None, last_checkpoint=None
)


class Recorder:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.key = name
        self.calls = calls

    @hookimpl
    def step_started(self, event: StepStarted) -> None:
        self.calls.append(f"{self.key} started {event.step}")

    @hookimpl
    def metrics_logged(self, event: MetricsLogged) -> None:
        self.calls.append(f"{self.key} logged {event.metrics}")


def test_events_arrive_in_the_order_of_the_list() -> None:
    calls: list[str] = []
    bus = EventBus([Recorder(name, calls) for name in "cab"])
    bus.step_started(StepStarted(step=3, epoch=0))
    bus.metrics_logged(MetricsLogged(step=3, metrics={"a": 1.0}))
    assert calls == [
        "c started 3", "a started 3", "b started 3",
        "c logged {'a': 1.0}", "a logged {'a': 1.0}", "b logged {'a': 1.0}",
    ]  # fmt: skip


def test_every_moment_of_the_hookspecs_has_a_method() -> None:
    moments = {name for name in vars(RunEvents) if not name.startswith("_")}
    assert moments <= set(dir(EventBus))


def test_answers_are_collected_in_order_without_nones() -> None:
    class Answers:
        def __init__(self, answer: object) -> None:
            self.answer = answer

        @hookimpl
        def step_finished(self) -> Any:
            return self.answer

    table = Table(name="t", columns=("a",), rows=(("b",),))
    answers: list[object] = [{"x": 1}, None, Stop(reason="enough"), table]
    bus = EventBus([Answers(answer) for answer in answers])
    assert bus.step_finished(None) == [{"x": 1}, Stop(reason="enough"), table]  # type: ignore[arg-type]
    assert not bus.wants_gradients


def test_a_moment_without_a_subscriber_is_silent() -> None:
    bus = EventBus([])
    assert bus.gradients_ready(GRADIENTS) == []
    bus.run_finished(RunFinished(step=1, seconds=1.0, stopped_by=None))
    assert bus.state_dict() == {}


@pytest.mark.parametrize("answer", [Skip(reason="a"), Stop(reason="b"), Fail(reason="c")])
def test_gradients_ready_is_wanted_and_answered(answer: Any) -> None:
    class Guard:
        @hookimpl
        def gradients_ready(self, event: GradientsReady) -> Any:
            return answer if event.step == 1 else None

    bus = EventBus([Guard()])
    assert bus.wants_gradients
    assert bus.gradients_ready(GRADIENTS) == [answer]


def test_an_exception_names_the_callback_and_the_moment() -> None:
    class Broken:
        @hookimpl
        def step_started(self) -> None:
            raise ZeroDivisionError("by zero")

    with pytest.raises(RunError, match="'Broken' failed at step_started: ZeroDivisionError: by"):
        EventBus([Broken()]).step_started(StepStarted(step=1, epoch=0))


@pytest.mark.parametrize("answer", [3.0, "text", {"a": "b"}, {"a": True}, {1: 2.0}])
def test_a_wrong_answer_names_the_callback(answer: object) -> None:
    class Odd:
        @hookimpl
        def step_finished(self) -> object:
            return answer

    with pytest.raises(RunError, match="'Odd' answered step_finished"):
        EventBus([Odd()]).step_finished(None)  # type: ignore[arg-type]


def test_a_wrong_gradient_answer_names_the_callback() -> None:
    class Odd:
        @hookimpl
        def gradients_ready(self) -> object:
            return {"x": 1.0}

    with pytest.raises(RunError, match="'Odd' answered gradients_ready with dict"):
        EventBus([Odd()]).gradients_ready(GRADIENTS)


def test_everyone_hears_of_the_end_even_if_one_fails() -> None:
    ended: list[str] = []

    class Fails:
        @hookimpl
        def run_finished(self) -> None:
            raise OSError("disk full")

    class Ends:
        @hookimpl
        def run_finished(self, event: RunFinished) -> None:
            ended.append(str(event.stopped_by))

    with pytest.raises(RunError, match="disk full"):
        EventBus([Fails(), Ends()]).run_finished(
            RunFinished(step=1, seconds=1.0, stopped_by="signal")
        )
    assert ended == ["signal"]


def test_a_misspelt_moment_is_an_error() -> None:
    class Misspelt:
        @hookimpl
        def step_ended(self, event: object) -> None: ...

    with pytest.raises(PluginError, match="step_ended"):
        EventBus([Misspelt()])


def test_an_unknown_argument_is_an_error() -> None:
    class Wrong:
        @hookimpl
        def step_started(self, event: object, trainer: object) -> None: ...

    with pytest.raises(PluginError, match="trainer"):
        EventBus([Wrong()])


def test_a_wrapper_is_an_error() -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def step_started(self) -> Any:
            yield

    with pytest.raises(PluginError, match="wrapper"):
        EventBus([Wraps()])


def test_equal_subscribers_are_an_error_that_says_why() -> None:
    @attrs.frozen
    class Equal:
        @hookimpl
        def step_started(self, event: object) -> None: ...

    with pytest.raises(PluginError, match="eq=False"):
        EventBus([Equal(), Equal()])


def test_the_same_object_twice_is_an_error() -> None:
    once = Recorder("a", [])
    with pytest.raises(PluginError, match="same object"):
        EventBus([once, once])


class Counter:
    key = "counter"

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_state_comes_back_by_key() -> None:
    saved = EventBus([Counter(3), Recorder("r", []), Counter(4)]).state_dict()
    assert saved == {"counter": {"count": 3}, "counter#2": {"count": 4}}
    first, second = Counter(), Counter()
    EventBus([first, second]).load_state_dict(saved | {"gone": {"x": 1}})
    assert (first.count, second.count) == (3, 4)


def test_state_of_another_shape_names_the_callback() -> None:
    with pytest.raises(RunError, match="'counter' failed at load_state_dict"):
        EventBus([Counter()]).load_state_dict({"counter": {}})


def test_half_of_the_state_protocol_is_an_error() -> None:
    class Half:
        def state_dict(self) -> dict[str, Any]:
            return {}

    with pytest.raises(PluginError, match="both"):
        EventBus([Half()])
