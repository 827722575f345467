import json
import random

import numpy as np
import pytest
import torch

from foundry_sdk.checkpoint.rng import capture_rng, restore_rng
from foundry_sdk.errors import CheckpointError


def draw():
    return (
        [random.random() for _ in range(3)],  # noqa: S311
        random.gauss(0, 1),
        np.random.rand(3).tolist(),
        np.random.randn(),
        torch.randn(3).tolist(),
        torch.randperm(9).tolist(),
    )


def test_all_generators_go_on_where_they_were():
    random.gauss(0, 1)  # leaves half a pair behind, in Python and NumPy alike
    np.random.randn()
    state = json.loads(json.dumps(capture_rng()))
    expected = draw()
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        restore_rng(state)
        assert draw() == expected


def test_a_damaged_state_is_an_error():
    state = capture_rng()
    with pytest.raises(CheckpointError, match="random generators"):
        restore_rng({**state, "torch": state["torch"][:-8]})
    with pytest.raises(CheckpointError, match="random generators"):
        restore_rng({})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_cuda_generator_goes_on_too():
    state = json.loads(json.dumps(capture_rng()))
    expected = torch.randn(4, device="cuda")
    restore_rng(state)
    assert torch.equal(torch.randn(4, device="cuda"), expected)
