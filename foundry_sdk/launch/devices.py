"""How many accelerators this machine offers."""

import os
from pathlib import Path


def device_count() -> int:
    """Return the number of CUDA devices that a process started here would see.

    torch is asked only where there is a driver: importing it takes seconds.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return 0
    if not (Path("/proc/driver/nvidia").exists() or Path("/dev/nvidiactl").exists()):
        return 0
    import torch

    return torch.cuda.device_count()
