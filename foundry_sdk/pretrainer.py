"""Pretraining in three lines: a spec, a ``Pretrainer``, ``fit``."""

from foundry_sdk.specs.run import PretrainSpec
from foundry_sdk.trainer import Trainer


class Pretrainer(Trainer[PretrainSpec]):
    """Trains a language model on tokens.

    Example:
        >>> Pretrainer.from_yaml("pretrain.yaml", ["max_duration=100ba"]).fit()
    """

    spec_class = PretrainSpec
