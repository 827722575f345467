"""What a run finds out about its finetuning data before the first step."""

import logging
from typing import TYPE_CHECKING

from foundry_sdk.data.finetuning.preflight import inspect_source, shared_examples
from foundry_sdk.data.finetuning.source import FinetuningSource
from foundry_sdk.training.isolation import check_run

if TYPE_CHECKING:
    from foundry_sdk.training.assemble import Assembly

_log = logging.getLogger(__name__)


def preflight(assembly: "Assembly") -> None:
    """Look at packed rows with the run's model, and warn of what is odd about the examples.

    Every rank calls this. What is left out or cut was told when the loaders were built.

    Raises:
        RunError: examples of a packed row see each other.
    """
    check_run(assembly)
    train = assembly.source
    if assembly.runtime.rank or not isinstance(train, FinetuningSource):
        return
    report = inspect_source("train_loader", train, samples=0)
    for source in report.sources:
        for warning in source.warnings_of_content():
            _log.warning("train_loader: %s", warning)
    for evaluator in assembly.evaluators:
        if not isinstance(evaluator.source, FinetuningSource):
            continue
        other = inspect_source(evaluator.label, evaluator.source, samples=0)
        both = shared_examples(report, other)
        if both:
            _log.warning(
                "%d of %d examples of %s are in train_loader too",
                both, len(other.fingerprints), evaluator.label,
            )  # fmt: skip
