"""One pass over an eval loader: cross-entropy and perplexity over every label, once."""

import itertools
import time
from collections.abc import Mapping

import attrs
import torch
from torch import Tensor, nn

from foundry_sdk.data.contract import BatchSource
from foundry_sdk.errors import DataError
from foundry_sdk.losses.module import Loss
from foundry_sdk.training.metrics import perplexity
from foundry_sdk.training.runtime import Runtime


@attrs.frozen(kw_only=True)
class Evaluator:
    """An eval loader, built.

    Attributes:
        label: ``eval``, or ``eval/NAME`` where there are several.
        source: this rank's batches.
        microbatch: sequences per forward.
        batches: at most so many per pass; None = all.
    """

    label: str
    source: BatchSource
    microbatch: int
    batches: int | None


@attrs.frozen(kw_only=True)
class Evaluation:
    """What a pass found; ``metrics`` has full keys."""

    metrics: Mapping[str, float]
    seconds: float


def evaluate(
    objective: nn.Module, evaluator: Evaluator, runtime: Runtime, *, loss: Loss
) -> Evaluation:
    """Go through ``evaluator`` once, on every rank.

    Cross-entropy is the sum over all labels of all ranks divided by their number; perplexity is
    its exponential. A loss that is no cross-entropy is named ``loss/LABEL/total`` instead.

    Args:
        objective: model and loss, as they are called.
        evaluator: the loader.
        runtime: this process among its peers.
        loss: the objective's loss.

    Raises:
        DataError: there is nothing to evaluate on.
    """
    started = time.perf_counter()
    # [nats, labels] in float64: a long pass adds more labels than float32 can count.
    totals = torch.zeros(2, dtype=torch.float64, device=runtime.device)
    was_training = objective.training
    position = evaluator.source.state_dict()
    objective.eval()
    try:
        with torch.no_grad(), runtime.computing():
            for batch in itertools.islice(evaluator.source, evaluator.batches):
                for part in batch.split(evaluator.microbatch):
                    with runtime.autocast():
                        output = objective(part.to(runtime.device))
                    totals += torch.stack(_float64(output))
        is_cross_entropy = loss.is_cross_entropy()
    finally:
        objective.train(was_training)
        runtime.reshard(objective)
        evaluator.source.load_state_dict(position)  # every pass sees the same batches
    nats, labels = runtime.sum_on_device(totals).tolist()
    if labels == 0:
        raise DataError(f"{evaluator.label}: no label to evaluate on")
    mean = nats / labels
    metrics = {f"loss/{evaluator.label}/total": mean}
    if is_cross_entropy:
        metrics = {
            f"metrics/{evaluator.label}/LanguageCrossEntropy": mean,
            f"metrics/{evaluator.label}/LanguagePerplexity": perplexity(mean),
        }
    return Evaluation(metrics=metrics, seconds=time.perf_counter() - started)


def _float64(output: tuple[Tensor, ...]) -> list[Tensor]:
    return [value.detach().to(torch.float64) for value in output[:2]]
