"""Finetuning in three lines: a spec, a ``Finetuner``, ``fit``."""

from collections.abc import Sequence
from pathlib import Path

from foundry_sdk.pretrainer import Pretrainer
from foundry_sdk.specs.run import FinetuneSpec
from foundry_sdk.trainer import Trainer


class Finetuner(Trainer[FinetuneSpec]):
    """Trains a language model on prompts and responses, or on chats.

    Example:
        >>> Finetuner.from_yaml("finetune.yaml", ["max_duration=2ep"]).fit()
    """

    spec_class = FinetuneSpec


def trainer_from_yaml(path: str | Path, overrides: Sequence[str] = ()) -> Pretrainer | Finetuner:
    """Read a file as what it is: a finetuning run where its train_loader is ``finetuning``.

    Raises:
        SpecError: with every mistake of the file.
    """
    from foundry_sdk.specs.structure import spec_class

    if spec_class(path, overrides) is FinetuneSpec:
        return Finetuner.from_yaml(path, overrides)
    return Pretrainer.from_yaml(path, overrides)
