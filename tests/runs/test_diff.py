"""``diff_runs`` on runs that differ in known places."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_sdk.errors import RunError
from foundry_sdk.runs.diff import Difference, diff_runs, differences

MakeRecord = Callable[..., Path]


def test_equal_runs_have_no_differences(make_record: MakeRecord) -> None:
    diff = diff_runs(make_record("a"), make_record("b"))
    assert (diff.spec, diff.environment, diff.metrics) == ((), (), ())
    assert (diff.loss.common_steps, diff.loss.first_step, diff.loss.largest) == (10, None, 0.0)


def test_spec_differences_by_dotted_path(
    make_record: MakeRecord, small_spec: dict[str, Any]
) -> None:
    other = {
        **small_spec,
        "model": {"name": "mpt_causal_lm", "d_model": 128, "attn_config": {"attn_impl": "flash"}},
        "optimizer": {"name": "decoupled_adamw", "lr": 1e-3, "betas": [0.9, 0.99]},
        "eval_loader": [{"label": "c4", "dataset": {"split": "test"}}],
        "precision": "fp32",
    }
    del other["seed"]
    diff = diff_runs(make_record("a"), make_record("b", spec=other))
    assert diff.spec == (
        Difference("model.d_model", 64, 128),
        Difference("model.attn_config.attn_impl", "torch", "flash"),
        Difference("optimizer.betas", [0.9, 0.95], [0.9, 0.99]),
        Difference("eval_loader[0].dataset.split", "val", "test"),
        Difference("seed", 17, "(absent)"),
        Difference("precision", "(absent)", "fp32"),
    )


def test_environment_differences(make_record: MakeRecord) -> None:
    second = make_record("b", seeds={"seed": 18}, data={"train_loader": {"card": "other"}})
    diff = diff_runs(make_record("a"), second)
    assert [(one.path, one.first, one.second) for one in diff.environment] == [
        ("data.train_loader.card", "d1ge57", "other"),
        ("data.train_loader.tokens", 1000, "(absent)"),
        ("seeds.seed", 17, 18),
    ]


def test_losses_differ_from_a_step_on(make_record: MakeRecord) -> None:
    losses = {step: 5.0 / step for step in range(1, 11)}
    losses[4] += 2**-30
    losses[7] -= 0.25
    losses[11] = 99.0
    diff = diff_runs(make_record("a"), make_record("b", losses=losses))
    loss = diff.loss
    assert (loss.common_steps, loss.first_step, loss.largest_step) == (10, 4, 7)
    assert loss.largest == pytest.approx(0.25, abs=1e-12)
    assert "loss/train/total" in [one.path for one in diff.metrics]
    assert not [one for one in diff.metrics if one.path.startswith("throughput")]


def test_nan_equals_nan_and_is_far_from_any_number(make_record: MakeRecord) -> None:
    first = make_record("a", losses={1: math.nan, 2: math.nan, 3: 1.0})
    second = make_record("b", losses={1: math.nan, 2: 1.0, 3: 1.0})
    loss = diff_runs(first, second).loss
    assert (loss.first_step, loss.largest, loss.largest_step) == (2, math.inf, 2)


def test_types_count() -> None:
    assert differences({"a": True, "b": 1}, {"a": 1, "b": 1.0}) == (
        Difference("a", True, 1),
        Difference("b", 1, 1.0),
    )


def test_a_folder_without_a_run_is_told(make_record: MakeRecord, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"spec\.yaml"):
        diff_runs(make_record("a"), tmp_path)
