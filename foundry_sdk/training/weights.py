"""Mixed precision with 16-bit weights: float32 masters, and copies that forwards compute in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ComputeWeights:
    """Lends a model 16-bit copies of its float32 parameters while it computes.

    The model's own parameters stay what everything else sees: float32 masters that the optimizer
    updates and checkpoints hold, each with a gradient after the backward passes. Inside
    :meth:`lent` every module finds the copies in their place, as FSDP's ``param_dtype`` does with
    shards (Micikevicius et al. 2018, "Mixed Precision Training", section 3.1). Against autocast's
    own casts this saves rounding the weights anew in each forward, and activations between layers
    are 16 bits wide.

    Gradients of several microbatches are added up in the master's dtype. Where there is one
    microbatch only, and the optimizer reads 16-bit gradients, nothing is added and no wide copy
    is made.

    Args:
        module: on its device; parameters of another dtype than float32 are left as they are.
        dtype: of the copies.

    Attributes:
        masters: the float32 parameters.
        wide_gradients: the masters' gradients are to be float32 in any case.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.wide_gradients = True
        self._dtype = dtype
        self._slots: list[tuple[nn.Module, str, int]] = []
        self.masters: list[nn.Parameter] = []
        numbers: dict[nn.Parameter, int] = {}
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if parameter.dtype is torch.float32:
                    number = numbers.setdefault(parameter, len(numbers))
                    self._slots.append((owner, name, number))
        self.masters.extend(numbers)
        self._copies: list[nn.Parameter] = []
        self._versions: list[int] = []
        self._adding = True

    def copies(self) -> Mapping[Tensor, Tensor]:
        """Return each master's copy, for an optimizer that writes both."""
        self._refresh()
        return dict(zip(self.masters, self._copies, strict=True))

    @contextmanager
    def lent(self, *, microbatches: int = 2) -> Iterator[None]:
        """Put the copies in the parameters' place, up to date; afterwards put these back.

        Args:
            microbatches: how many backward passes add to the gradients before they are used.
        """
        self._refresh()
        self._adding = microbatches > 1 or self.wide_gradients
        for owner, name, number in self._slots:
            owner._parameters[name] = self._copies[number]
        try:
            yield
        finally:
            for owner, name, number in self._slots:
                owner._parameters[name] = self.masters[number]
            for copy in self._copies:
                copy.grad = None  # left behind where a backward pass broke off

    def _refresh(self) -> None:
        """Round what changed since the last time; the first time, everything."""
        if not self._copies:
            self._make()
            return
        versions = [master._version for master in self.masters]
        stale = [
            number
            for number, (now, then) in enumerate(zip(versions, self._versions, strict=True))
            if now != then
        ]
        self._round(stale)
        self._versions = versions

    def _make(self) -> None:
        for master in self.masters:
            with torch.no_grad():
                values = master.detach().to(self._dtype, copy=True)
            copy = nn.Parameter(values, requires_grad=master.requires_grad)
            self._copies.append(copy)
            if master.requires_grad:
                master.grad_dtype = None  # of the copy's dtype, where nothing was added
                copy.register_post_accumulate_grad_hook(self._hand_over(master))  # type: ignore[no-untyped-call]
        self._versions = [master._version for master in self.masters]

    def _hand_over(self, master: nn.Parameter) -> Callable[[Tensor], None]:
        def hand_over(copy: Tensor) -> None:
            gradient, copy.grad = copy.grad, None
            if gradient is None:
                return
            if master.grad is not None:
                master.grad.add_(gradient)
            else:
                master.grad = gradient.to(master.dtype) if self._adding else gradient

        return hand_over

    @torch.no_grad()
    def _round(self, numbers: Sequence[int]) -> None:
        if numbers:
            torch._foreach_copy_(
                [self._copies[number] for number in numbers],
                [self.masters[number] for number in numbers],
            )
