"""An optimizer that changes nothing: to time or debug everything around the update."""

from collections.abc import Callable

from foundry_sdk.optim.decoupled import ParamsT, ScheduledOptimizer, evaluate


class NoOp(ScheduledOptimizer):
    """Leaves every parameter as it is."""

    def __init__(self, params: ParamsT, lr: float = 0.0) -> None:
        """Make the optimizer; ``lr`` is only what is logged."""
        super().__init__(params, {"lr": lr})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has overloads for the same two cases
        """Return what ``closure`` returned."""
        return evaluate(closure)
