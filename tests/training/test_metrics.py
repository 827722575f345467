"""Which numbers a step logs."""

import math

import pytest

from foundry_sdk.events import StepFinished
from foundry_sdk.losses.cross_entropy import CrossEntropy
from foundry_sdk.losses.fused import FusedCrossEntropy
from foundry_sdk.training.metrics import perplexity, train_metrics

EVENT = StepFinished(
    step=3,
    epoch=0,
    batch_in_epoch=3,
    samples=24,
    tokens=384,
    step_samples=8,
    step_tokens=128,
    step_labels=120,
    loss=2.0,
    gradient_norm=0.5,
    lrs=(0.1,),
    optimizer="SGD",
    microbatch=4,
    seconds=1.0,
    step_seconds=0.3,
    data_seconds=0.1,
)


def test_cross_entropy_is_named_only_where_the_loss_is_one() -> None:
    plain = train_metrics(EVENT, is_cross_entropy=True)
    assert plain["metrics/train/LanguageCrossEntropy"] == plain["loss/train/total"] == 2.0
    assert plain["metrics/train/LanguagePerplexity"] == math.exp(2.0)
    with_more = train_metrics(EVENT, is_cross_entropy=False)
    assert with_more["loss/train/total"] == 2.0
    assert not [key for key in with_more if "Language" in key]


@pytest.mark.parametrize("loss", [CrossEntropy, FusedCrossEntropy])
def test_a_z_loss_is_no_cross_entropy_while_training(
    loss: type[CrossEntropy] | type[FusedCrossEntropy],
) -> None:
    assert loss(0.0).is_cross_entropy()
    assert not loss(1e-4).is_cross_entropy()
    assert loss(1e-4).eval().is_cross_entropy()


def test_a_perplexity_beyond_floats_is_infinite() -> None:
    assert perplexity(1e4) == math.inf
