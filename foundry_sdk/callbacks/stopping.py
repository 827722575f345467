"""``early_stopper``: end a run that no longer gets better."""

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import attrs
from attrs import validators

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.errors import RunError, SpecError
from foundry_sdk.events import EvaluationFinished, RunStarted, StepFinished, Stop
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.intervals import duration
from foundry_sdk.units import Duration, TimeUnit

_TRAIN_MONITORS: Final = (
    "loss/train/total",
    "LanguageCrossEntropy",
    "LanguagePerplexity",
    "metrics/train/LanguageCrossEntropy",
    "metrics/train/LanguagePerplexity",
)
_LOWER_IS_BETTER: Final = ("loss", "error", "perplexity", "crossentropy")


@attrs.frozen(kw_only=True)
class EarlyStopperSpec(CallbackSpec):
    """Stops when ``monitor`` has not improved by more than ``min_delta`` for over ``patience``.

    Attributes:
        monitor: a metric's name, or its full key.
        dataloader_label: the eval loader's label (``eval`` where there is one without a label),
            or ``train``: then the last logged training loss of each epoch.
        comp: whether ``less`` or ``greater`` is better; by default less for names with loss,
            error, perplexity or cross-entropy, else greater.
        min_delta: a smaller change is no improvement.
        patience: epochs (a plain number) or steps (``"100ba"``).
    """

    kind = "early_stopper"
    monitor: str
    dataloader_label: str
    comp: Literal["less", "greater"] | None = attrs.field(
        default=None, validator=validators.optional(validators.in_(("less", "greater")))
    )
    min_delta: float = attrs.field(default=0.0, validator=validators.ge(0))
    patience: Duration = attrs.field(factory=lambda: Duration.parse("1ep"), converter=duration)

    def __attrs_post_init__(self) -> None:
        """Refuse what can't be monitored.

        Raises:
            SpecError: the patience is in other units, or training has no such metric.
        """
        if self.patience.unit not in {TimeUnit.EPOCH, TimeUnit.BATCH}:
            raise SpecError(
                f"early_stopper: patience is in epochs ('ep') or steps ('ba'), got {self.patience}"
            )
        if self.dataloader_label == "train" and self.monitor not in _TRAIN_MONITORS:
            raise SpecError(
                f"early_stopper: training has no metric {self.monitor!r}; it has "
                f"{', '.join(_TRAIN_MONITORS)}"
            )

    def build(self, run: RunStarted) -> "EarlyStopper":
        """Return the callback.

        Raises:
            SpecError: the run has no eval loader of this label, so it would never look.
        """
        loaders = run.resolved_spec.get("eval_loader")
        if self.dataloader_label != "train" and loaders is not None:
            labels = [loader.get("label") or "eval" for loader in loaders]
            if self.dataloader_label.removeprefix("eval/") not in labels:
                known = ", ".join([*labels, "train"])
                raise SpecError(
                    f"callbacks.early_stopper.dataloader_label: no eval loader has the label "
                    f"{self.dataloader_label!r}; the run has {known}"
                )
        return EarlyStopper(self)


class EarlyStopper:
    """Remembers the best value and when it was seen."""

    key = EarlyStopperSpec.kind

    def __init__(self, spec: EarlyStopperSpec) -> None:
        """Nothing is seen yet."""
        self._spec = spec
        lower = spec.comp == "less" or (
            spec.comp is None and any(word in spec.monitor.lower() for word in _LOWER_IS_BETTER)
        )
        self._sign = -1.0 if lower else 1.0
        self._best: float | None = None
        self._best_at = {TimeUnit.EPOCH: 0, TimeUnit.BATCH: 0}
        self._train_loss: float | None = None
        self._epoch = 0

    @hookimpl
    def step_finished(self, event: StepFinished) -> Stop | None:
        """Look at the training loss when an epoch is over."""
        if self._spec.dataloader_label != "train":
            return None
        if event.loss is not None:
            self._train_loss = event.loss
        if event.epoch == self._epoch:
            return None
        self._epoch = event.epoch
        if self._train_loss is None:
            return None
        value = self._train_loss
        if self._spec.monitor.endswith("Perplexity"):
            value = math.exp(value)
        return self._look(value, step=event.step, epoch=event.epoch)

    @hookimpl
    def evaluation_finished(self, event: EvaluationFinished) -> Stop | None:
        """Look at the eval loader's metric."""
        if event.label.removeprefix("eval/") != self._spec.dataloader_label.removeprefix("eval/"):
            return None
        return self._look(self._value(event.metrics), step=event.step, epoch=event.epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, when it was, and the epochs seen."""
        return {
            "best": self._best,
            "best_at": {str(unit): count for unit, count in self._best_at.items()},
            "train_loss": self._train_loss,
            "epoch": self._epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._best = state["best"]
        self._best_at = {TimeUnit(unit): count for unit, count in state["best_at"].items()}
        self._train_loss = state["train_loss"]
        self._epoch = state["epoch"]

    def _value(self, metrics: Mapping[str, float]) -> float:
        for key, value in metrics.items():
            if key == self._spec.monitor or key.rsplit("/", 1)[-1] == self._spec.monitor:
                return value
        raise RunError(
            f"early_stopper monitors {self._spec.monitor!r}, which the evaluation of "
            f"{self._spec.dataloader_label!r} does not have; it has {', '.join(sorted(metrics))}"
        )

    def _look(self, value: float, *, step: int, epoch: int) -> Stop | None:
        now = {TimeUnit.EPOCH: epoch, TimeUnit.BATCH: step}
        # NaN is worse than any number, and no reason to forget the best one.
        if not math.isnan(value) and (
            self._best is None or self._sign * (value - self._best) > self._spec.min_delta
        ):
            self._best, self._best_at = value, now
            return None
        patience = self._spec.patience
        if now[patience.unit] - self._best_at[patience.unit] <= patience.value:
            return None
        best = "never a number" if self._best is None else f"best {self._best:.4f}"
        return Stop(
            reason=f"early_stopper: {self._spec.monitor} of {self._spec.dataloader_label} is "
            f"{value:.4f}, {best} at step {self._best_at[TimeUnit.BATCH]}; no improvement for over "
            f"{patience}"
        )
