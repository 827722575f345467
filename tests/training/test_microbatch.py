"""Running out of memory halves the microbatch and leaves no trace in the gradients."""

import pytest
import torch
from torch import nn

from foundry_sdk.errors import RunError
from foundry_sdk.training.feed import Drawn
from foundry_sdk.training.microbatch import Microbatching

DRAWN = Drawn.__new__(Drawn)  # handed through untouched


class Device:
    """Adds to the gradient like a backward, and fails above ``fits`` sequences."""

    def __init__(self, module: nn.Linear, fits: int) -> None:
        self.module = module
        self.fits = fits
        self.sizes: list[int] = []

    def run(self, _: Drawn, size: int) -> torch.Tensor:
        self.sizes.append(size)
        loss = self.module(torch.ones(1, 2)).sum()
        loss.backward()  # half of a step's work is done when memory runs out
        if size > self.fits:
            raise torch.OutOfMemoryError("out of memory")
        return loss.detach()


def test_the_step_is_repeated_from_cleared_gradients() -> None:
    module = nn.Linear(2, 1)
    device = Device(module, fits=3)
    microbatching = Microbatching(16, auto=True, objective=module)
    microbatching.forward_backward(DRAWN, device.run)
    assert device.sizes == [16, 8, 4, 2]
    assert microbatching.size == 2
    assert torch.equal(module.weight.grad, torch.ones(1, 2))  # of one backward, not of four


def test_the_size_that_fits_is_kept() -> None:
    module = nn.Linear(2, 1)
    device = Device(module, fits=3)
    microbatching = Microbatching(4, auto=True, objective=module)
    microbatching.forward_backward(DRAWN, device.run)
    microbatching.forward_backward(DRAWN, device.run)
    assert device.sizes == [4, 2, 2]


def test_not_even_one_sequence_fits() -> None:
    module = nn.Linear(2, 1)
    microbatching = Microbatching(2, auto=True, objective=module)
    with pytest.raises(RunError, match="one sequence per forward does not fit"):
        microbatching.forward_backward(DRAWN, Device(module, fits=0).run)


def test_a_size_that_the_user_chose_is_not_changed() -> None:
    module = nn.Linear(2, 1)
    microbatching = Microbatching(4, auto=False, objective=module)
    with pytest.raises(RunError, match="device_train_microbatch_size: 4; use a smaller"):
        microbatching.forward_backward(DRAWN, Device(module, fits=1).run)
