"""``device_train_microbatch_size``: a number, or ``auto``, which finds what fits."""

import gc
from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor, nn

from foundry_sdk.errors import DeviceMemoryError, RunError
from foundry_sdk.training.feed import Drawn
from foundry_sdk.training.runtime import Runtime

CPU_TOKENS: Final = 16_384
"""``auto`` on a CPU: as many tokens per forward as keep it busy; memory grows with more."""


def first_size(
    wanted: int | Literal["auto"], *, runtime: Runtime, device_batch: int, sequence_length: int
) -> tuple[int, str | None]:
    """Return the microbatch to start with, and how it was chosen if the user did not say.

    Raises:
        RunError: ``auto`` on several GPUs, where an out-of-memory error on one rank would leave
            the others waiting.
    """
    if wanted != "auto":
        return min(wanted, device_batch), None
    if runtime.device.type != "cuda":
        size = max(1, min(device_batch, CPU_TOKENS // sequence_length))
        return size, f"{size}, for about {CPU_TOKENS} tokens per forward on a CPU"
    if runtime.world_size > 1:
        raise RunError(
            "device_train_microbatch_size: auto is not supported on several GPUs; give a number"
        )
    return device_batch, f"{device_batch}, halved whenever the GPU's memory is exceeded"


class Microbatching:
    """Runs a step's forwards and backwards; under ``auto``, in smaller pieces after OOM.

    Attributes:
        size: sequences per forward now.
    """

    def __init__(self, size: int, *, auto: bool, objective: nn.Module) -> None:
        self.size = size
        self._auto = auto
        self._objective = objective

    def forward_backward(self, drawn: Drawn, run: Callable[[Drawn, int], Tensor]) -> Tensor:
        """Return ``run(drawn, size)``, repeated with half the size as long as memory runs out.

        The repetition starts from cleared gradients, so the step's mathematics is unchanged.

        Raises:
            DeviceMemoryError: not even one sequence fits, or the size that the user chose.
        """
        while True:
            try:
                return run(drawn, self.size)
            except torch.OutOfMemoryError as error:
                if not self._auto:
                    raise DeviceMemoryError(_advice(self.size)) from error
                if self.size == 1:
                    raise DeviceMemoryError(
                        "one sequence per forward does not fit the GPU"
                    ) from error
            # Outside the handler: the exception's frames hold the activations.
            self.size = max(1, self.size // 2)
            for parameter in self._objective.parameters():
                parameter.grad = None
            gc.collect()
            torch.cuda.empty_cache()


def _advice(size: int) -> str:
    return (
        f"out of memory with device_train_microbatch_size: {size}; use a smaller number or "
        "'auto', activation checkpointing (fsdp_config), or a smaller model"
    )
