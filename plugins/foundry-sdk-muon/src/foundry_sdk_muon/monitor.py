"""``muon_monitor``: what of the model is under Muon, and how steady its momentum is."""

import math
from collections.abc import Iterable, Mapping
from typing import Final

import attrs
from attrs import validators

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.errors import SpecError
from foundry_sdk.events import GradientsReady, Probe, RunStarted, StepFinished
from foundry_sdk.hookspecs import hookimpl

_BUFFER: Final = "momentum_buffer/"


@attrs.frozen(kw_only=True)
class MuonMonitorSpec(CallbackSpec):
    """Logs norms of what Muon updates, and how much of a gradient persists in its momentum.

    ``muon/matrices`` of ``muon/parameters`` tensors are under Muon; ``muon/weight_norm`` is the
    L2 norm of those, ``muon/other_weight_norm`` of the rest; ``muon/momentum_norm`` and
    ``muon/gradient_norm`` are of the same matrices, and ``muon/persistence`` is their ratio: 1
    where every gradient points the same way, sqrt((1 - m) / (1 + m)) for gradients of pure noise
    with momentum m (0.16 for 0.95).

    Attributes:
        interval: steps from one time to the next; each reads every parameter.
    """

    kind = "muon_monitor"
    interval: int = attrs.field(default=10, validator=validators.ge(1))

    def build(self, run: RunStarted) -> "MuonMonitor":
        """Return the callback.

        Raises:
            SpecError: the run's optimizer is another one.
        """
        optimizer = run.resolved_spec.get("optimizer", {}).get("name")
        if optimizer != "muon":
            raise SpecError(
                f"callbacks.muon_monitor: the run's optimizer is {optimizer!r}; it has something "
                "to watch only with optimizer.name: muon"
            )
        return MuonMonitor(run.probe, interval=self.interval)


class MuonMonitor:
    """Reads gradients while they exist, and the rest when the step is done."""

    key = MuonMonitorSpec.kind

    def __init__(self, probe: Probe, *, interval: int) -> None:
        """Read from ``probe`` every ``interval`` steps."""
        self._probe = probe
        self._interval = interval
        self._gradients: Mapping[str, float] | None = None

    @hookimpl
    def gradients_ready(self, event: GradientsReady) -> None:
        """Read the gradients that the update is made with."""
        due = event.step % self._interval == 0
        self._gradients = self._probe.gradient_norms() if due else None

    @hookimpl
    def step_finished(self, event: StepFinished) -> dict[str, float] | None:
        """Return the norms, if they are due and an update was made."""
        gradients, self._gradients = self._gradients, None
        if gradients is None or event.skipped is not None:
            return None
        state, weights = self._probe.optimizer_norms(), self._probe.parameter_norms()
        momentum = {
            key.removeprefix(_BUFFER): norm
            for key, norm in state.items()
            if key.startswith(_BUFFER)
        }
        of_momentum = _norm(momentum.values())
        of_gradient = _norm(gradients.get(name, 0.0) for name in momentum)
        metrics = {
            "muon/matrices": len(momentum),
            "muon/parameters": len(weights),
            "muon/weight_norm": _norm(weights[name] for name in momentum),
            "muon/other_weight_norm": _norm(
                norm for name, norm in weights.items() if name not in momentum
            ),
            "muon/momentum_norm": of_momentum,
            "muon/gradient_norm": of_gradient,
        }
        if of_gradient > 0:
            metrics["muon/persistence"] = of_momentum / of_gradient
        return metrics


def _norm(norms: Iterable[float]) -> float:
    return math.sqrt(sum(norm * norm for norm in norms))
