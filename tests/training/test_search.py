"""The search for a microbatch, with rates and memory that are made up."""

import pytest
import torch

from foundry_sdk.batch import Batch
from foundry_sdk.training.search import Finding, candidates, fastest, full_length


@pytest.mark.parametrize(
    ("device_batch", "length", "expected"),
    [
        (64, 2048, [4, 8, 16, 32, 64]),
        (12, 2048, [4, 6, 12]),
        (12, 4096, [2, 3, 6, 12]),
        (13, 2048, [1, 13]),
        (4, 2048, [4]),
        (8, 65536, [1, 2, 4, 8]),
    ],
)
def test_sizes_divide_the_device_batch(device_batch: int, length: int, expected: list[int]) -> None:
    assert candidates(device_batch, length) == expected


class Device:
    """A device with so much memory, that is busy from some size on."""

    def __init__(self, fits: int, busy: int) -> None:
        self.fits, self.busy = fits, busy
        self.tried: list[int] = []

    def rate(self, size: int) -> float | None:
        self.tried.append(size)
        return None if size > self.fits else 1000.0 * min(size, self.busy)


@pytest.mark.parametrize(
    ("fits", "busy", "chosen", "tried"),
    [
        (64, 64, 64, [4, 8, 16, 32, 64]),
        (64, 16, 16, [4, 8, 16, 32]),  # larger gains nothing
        (20, 64, 16, [4, 8, 16, 32]),  # larger does not fit
        (3, 64, 2, [4, 2]),
        (0, 64, 1, [4, 2, 1]),  # then the first step says so
    ],
)
def test_the_fastest_that_fits_is_chosen(
    fits: int, busy: int, chosen: int, tried: list[int]
) -> None:
    device = Device(fits, busy)
    assert fastest(candidates(64, 2048), device.rate).size == chosen
    assert device.tried == tried


def test_the_search_ends_in_time() -> None:
    device, times = Device(64, 64), iter([0.0, 20.0, 61.0])
    found = fastest(candidates(64, 2048), device.rate, seconds=60, clock=lambda: next(times))
    assert found.size == 8
    assert device.tried == [4, 8]


def test_it_is_told_in_one_line() -> None:
    finding = Finding(size=16, rates={8: 60900.4, 16: 63590.0, 32: None})
    assert finding.text() == (
        "16, the fastest that fits (8: 60,900 tokens/s, 16: 63,590 tokens/s, 32: does not fit)"
    )


def test_a_trial_is_as_long_as_a_batch_can_be() -> None:
    batch = Batch(
        input_ids=torch.tensor([[1, 2, 3], [4, 5, 0]]),
        labels=torch.tensor([[2, 3, 9], [5, -100, -100]]),
        attention_mask=torch.tensor([[True, True, True], [True, True, False]]),
        sample_ids=torch.tensor([7, 8]),
    )
    longer = full_length(batch, 7)
    assert longer.input_ids.tolist() == [[1, 2, 3, 1, 2, 3, 1], [4, 5, 0, 4, 5, 0, 4]]
    assert longer.labels.shape == (2, 7)
    assert longer.attention_mask is not None
    assert longer.attention_mask.all()
    assert full_length(batch, 3).input_ids is batch.input_ids
