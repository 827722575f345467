"""The state of this process's random generators as JSON values."""

import base64
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foundry_sdk.errors import CheckpointError


def capture_rng() -> dict[str, Any]:
    """Return the state of Python's, NumPy's (global), torch's CPU and current CUDA generator."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    if not isinstance(numpy_state, dict):
        raise TypeError("NumPy returned the state of its generator in another form")
    state = {
        "python": [version, list(words), gauss],
        "numpy": {
            "bit_generator": numpy_state["bit_generator"],
            "key": _encode(torch.from_numpy(numpy_state["state"]["key"].view(np.uint8))),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": _encode(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = _encode(torch.cuda.get_rng_state())
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Put the generators into a state that ``capture_rng`` returned.

    A CUDA state is left out on a machine without CUDA, as there is nothing it could act on.

    Raises:
        CheckpointError: ``state`` is no such state.
    """
    try:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        stored = state["numpy"]
        key = np.frombuffer(base64.b64decode(stored["key"]), dtype=np.uint32)
        np.random.set_state(
            {
                "bit_generator": stored["bit_generator"],
                "state": {"key": key, "pos": stored["pos"]},
                "has_gauss": stored["has_gauss"],
                "gauss": stored["gauss"],
            }
        )
        torch.set_rng_state(_decode(state["torch"]))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(_decode(state["cuda"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the state of the random generators is damaged: {error}") from error


def _encode(values: Tensor) -> str:
    return base64.b64encode(values.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
