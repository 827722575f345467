"""One spec of each family, sound but for the ``fault`` that it is told to have."""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.data.contract import (
    BatchSource,
    DataSpec,
    LoaderContext,
    Preprocess,
    PreprocessorSpec,
)
from foundry_sdk.events import RunStarted
from foundry_sdk.losses.contract import LossSpec
from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.optim.contract import (
    OptimizerSpec,
    ParamGroups,
    Progress,
    RunLength,
    Schedule,
    SchedulerSpec,
)

if TYPE_CHECKING:
    import torch

    from foundry_sdk.losses.module import HeadLoss, LogitsLoss
    from foundry_sdk.models.language_model import LanguageModel


@attrs.frozen(kw_only=True)
class Rows(PreprocessorSpec):
    """Rows with q and a."""

    kind = "rows"
    fault: str = ""

    def build(self) -> Preprocess:
        return RowFunction(self.fault)


class RowFunction:
    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __call__(self, row: Mapping[str, Any]) -> Any:  # noqa: PLR0911
        match self.fault:
            case "list":
                return [row["q"], row["a"]]
            case "extra":
                return {"prompt": row["q"], "response": row["a"], "id": 1}
            case "number":
                return {"prompt": row["q"], "response": 2}
            case "empty":
                return {"prompt": row["q"], "response": ""}
            case "mutates":
                return {"prompt": row.pop("q"), "response": row["a"]}  # type: ignore[attr-defined]
            case "random":
                return {"prompt": row["q"], "response": str(random.random())}  # noqa: S311
            case "lenient":
                return {"prompt": row.get("q", "?"), "response": row.get("a", "?")}
            case "one message":
                return {"messages": [{"role": "assistant", "content": row["a"]}]}
            case "no role":
                return {"messages": [{"content": row["q"]}, {"content": row["a"]}]}
            case "user last":
                return {"messages": [{"role": "user", "content": row[c]} for c in "qa"]}
        return {"prompt": row["q"], "response": row["a"]}


@attrs.frozen(kw_only=True)
class Ramp(SchedulerSpec):
    """Up from 0."""

    kind = "ramp"
    fault: str = ""

    def build(self, length: RunLength) -> Schedule:
        calls = [0]

        def schedule(progress: Progress) -> float:
            calls[0] += 1
            match self.fault:
                case "end":
                    steps = length.steps or 0
                    return 1.0 if progress.step < steps else float("nan")
                case "negative":
                    return 1 - progress.step / 50
                case "counts":
                    return float(calls[0])
                case "nothing":
                    return 0.0
            return float(progress.step)

        return schedule


@attrs.frozen(kw_only=True)
class Loss(LossSpec):
    """A cross-entropy."""

    kind = "loss"
    fault: str = ""
    head: bool = False

    def build(self) -> "LogitsLoss | HeadLoss":
        from planted_modules import FaultyHeadLoss, FaultyLoss

        return FaultyHeadLoss(self.fault) if self.head else FaultyLoss(self.fault)


@attrs.frozen(kw_only=True)
class Model(ModelSpec):
    """A running mean of embeddings, and a head."""

    kind = "model"
    fault: str = ""

    def parameters(self) -> int:
        return 1 if self.fault == "parameters" else 2 * 11 * 4

    def vocabulary(self) -> int:
        return 12 if self.fault == "vocabulary" else 11

    def build(self, *, device: str) -> "LanguageModel":
        from planted_modules import FaultyModel

        return FaultyModel(self.fault, "cpu" if self.fault == "device" else device)


@attrs.frozen(kw_only=True)
class Optimizer(OptimizerSpec):
    """Momentum and decoupled decay."""

    kind = "optimizer"
    lr: float = 0.1
    fault: str = ""

    def state_floats(self) -> int:
        return 2 if self.fault == "floats" else 1

    def build(self, groups: ParamGroups) -> "torch.optim.Optimizer":
        from planted_modules import FaultyOptimizer

        return FaultyOptimizer(groups[:1] if self.fault == "loses" else groups, self)


@attrs.frozen(kw_only=True)
class Callback(CallbackSpec):
    """Counts steps and stops at ten."""

    kind = "callback"
    fault: str = ""

    def build(self, run: RunStarted) -> object:
        from planted_modules import CALLBACKS, Counter

        return CALLBACKS.get(self.fault, Counter)(self.fault)


@attrs.frozen(kw_only=True)
class Loader(DataSpec):
    """Counts upwards."""

    kind = "loader"
    fault: str = ""

    def build(self, context: LoaderContext) -> BatchSource:
        from planted_modules import Counting

        return Counting(context, self.fault)
