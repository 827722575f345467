"""early_stopper: what is better, for how long it waits, what it remembers."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from foundry_sdk.callbacks.stopping import EarlyStopper, EarlyStopperSpec
from foundry_sdk.errors import RunError, SpecError
from foundry_sdk.events import EvaluationFinished, RunStarted, StepFinished, Stop

MakeRun = Callable[..., RunStarted]
MakeStep = Callable[..., StepFinished]
MakeEvaluation = Callable[..., EvaluationFinished]


def spec(**fields: Any) -> EarlyStopperSpec:
    defaults = {"monitor": "LanguageCrossEntropy", "dataloader_label": "eval"}
    return EarlyStopperSpec(**defaults | fields)


def stops(stopper: EarlyStopper, make: MakeEvaluation, values: list[float]) -> list[bool]:
    """Evaluate after steps 10, 20, ... (an epoch each); when does it stop?"""
    answers = [
        stopper.evaluation_finished(make(10 * index, value))
        for index, value in enumerate(values, start=1)
    ]
    assert all(answer is None or isinstance(answer, Stop) for answer in answers)
    return [answer is not None for answer in answers]


def test_it_stops_when_patience_is_over(make_run: MakeRun, make_evaluation: MakeEvaluation) -> None:
    stopper = spec(patience=1).build(make_run())
    # Best at epoch 2; epoch 3 is within the patience of 1, epoch 4 is past it.
    assert stops(stopper, make_evaluation, [3.0, 2.0, 2.5, 2.4]) == [False, False, False, True]


def test_an_improvement_starts_the_patience_anew(
    make_run: MakeRun, make_evaluation: MakeEvaluation
) -> None:
    stopper = spec(patience="1ep").build(make_run())
    assert not any(stops(stopper, make_evaluation, [3.0, 3.1, 2.9, 3.0, 2.8]))


def test_a_change_within_min_delta_is_no_improvement(
    make_run: MakeRun, make_evaluation: MakeEvaluation
) -> None:
    stopper = spec(min_delta=0.5).build(make_run())
    assert stops(stopper, make_evaluation, [3.0, 2.75, 2.5, 2.5]) == [False, False, True, True]


def test_patience_in_steps(make_run: MakeRun, make_evaluation: MakeEvaluation) -> None:
    stopper = spec(patience="25ba").build(make_run())
    assert stops(stopper, make_evaluation, [1.0, 2.0, 2.0, 2.0]) == [False, False, False, True]


@pytest.mark.parametrize(
    ("fields", "better"),
    [
        ({"monitor": "LanguageCrossEntropy"}, "less"),
        ({"monitor": "LanguagePerplexity"}, "less"),
        ({"monitor": "loss/eval"}, "less"),
        ({"monitor": "Accuracy"}, "greater"),
        ({"monitor": "Accuracy", "comp": "less"}, "less"),
        ({"monitor": "LanguagePerplexity", "comp": "greater"}, "greater"),
    ],
)
def test_which_way_is_better(
    make_run: MakeRun, make_evaluation: MakeEvaluation, fields: dict[str, Any], better: str
) -> None:
    stopper = spec(patience="0ba", **fields).build(make_run())
    key = f"metrics/eval/{fields['monitor']}"
    if "/" in fields["monitor"]:
        key = fields["monitor"]
    first = make_evaluation(10, 0.0, metrics={key: 1.0})
    second = make_evaluation(20, 0.0, metrics={key: 2.0})
    assert stopper.evaluation_finished(first) is None
    assert (stopper.evaluation_finished(second) is None) is (better == "greater")


def test_nan_never_is_the_best(make_run: MakeRun, make_evaluation: MakeEvaluation) -> None:
    stopper = spec(patience=1).build(make_run())
    values = [math.nan, 2.0, math.nan, math.nan]
    assert stops(stopper, make_evaluation, values) == [False, False, False, True]


def test_other_loaders_are_not_looked_at(
    make_run: MakeRun, make_evaluation: MakeEvaluation
) -> None:
    stopper = spec(dataloader_label="c4", patience="0ba").build(make_run())
    for step in (10, 20, 30):
        assert stopper.evaluation_finished(make_evaluation(step, 1.0, label="eval/code")) is None
    answers = [
        stopper.evaluation_finished(make_evaluation(step, 1.0, label="eval/c4"))
        for step in (10, 20)
    ]
    assert isinstance(answers[1], Stop)


def test_a_metric_that_is_not_there_is_an_error_with_those_that_are(
    make_run: MakeRun, make_evaluation: MakeEvaluation
) -> None:
    stopper = spec(monitor="Acuracy").build(make_run())
    with pytest.raises(RunError, match="metrics/eval/LanguageCrossEntropy"):
        stopper.evaluation_finished(make_evaluation(10, 1.0))


def test_training_is_looked_at_at_the_end_of_each_epoch(
    make_run: MakeRun, make_step: MakeStep
) -> None:
    stopper = spec(dataloader_label="train", monitor="loss/train/total").build(make_run())
    losses = {10: 3.0, 20: 2.0, 30: 2.5, 40: 2.4}
    stopped = []
    for step in range(1, 41):
        # The loss of most steps is not read; spikes within an epoch do not matter.
        loss = losses.get(step, 9.0) if step % 5 == 0 else None
        if stopper.step_finished(make_step(step, loss=loss)) is not None:
            stopped.append(step)
    assert stopped == [40]


def test_what_was_best_survives_a_restart(
    make_run: MakeRun, make_evaluation: MakeEvaluation
) -> None:
    first = spec(patience=1).build(make_run())
    stops(first, make_evaluation, [3.0, 2.0])
    second = spec(patience=1).build(make_run(step=20))
    second.load_state_dict(first.state_dict())
    assert second.evaluation_finished(make_evaluation(30, 2.5)) is None
    answer = second.evaluation_finished(make_evaluation(40, 2.4))
    assert isinstance(answer, Stop)
    assert "best 2.0000 at step 20" in answer.reason


@pytest.mark.parametrize(
    ("loaders", "label", "refused"),
    [
        ([], "eval", True),
        ([{"name": "text"}], "evl", True),
        ([{"label": "c4"}, {"label": "code"}], "eval", True),
        ([{"name": "text"}], "eval", False),
        ([{"label": "c4"}, {"label": "code"}], "code", False),
        ([{"label": "c4"}], "eval/c4", False),
        ([], "train", False),
    ],
)
def test_a_label_that_no_loader_has_is_refused(
    make_run: MakeRun, loaders: list[dict[str, str]], label: str, *, refused: bool
) -> None:
    run = make_run(resolved_spec={"eval_loader": loaders})
    if not refused:
        spec(dataloader_label=label).build(run)
        return
    with pytest.raises(SpecError, match=f"the label '{label}'; the run has .*train"):
        spec(dataloader_label=label).build(run)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patience": "100tok"}, "epochs"),
        ({"dataloader_label": "train", "monitor": "Accuracy"}, "training has no metric"),
    ],
)
def test_what_cannot_be_monitored_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(**fields)
