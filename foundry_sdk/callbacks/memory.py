"""``memory_monitor``: memory of the accelerator and of the process."""

import logging
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.events import RunStarted, StepFinished
from foundry_sdk.hookspecs import hookimpl

_log = logging.getLogger(__name__)

_CUDA_KEYS: Final[Mapping[str, str]] = {
    "allocated_bytes.all.current": "current_allocated_mem",
    "active_bytes.all.current": "current_active_mem",
    "inactive_split_bytes.all.current": "current_inactive_mem",
    "reserved_bytes.all.current": "current_reserved_mem",
    "allocated_bytes.all.peak": "peak_allocated_mem",
    "active_bytes.all.peak": "peak_active_mem",
    "inactive_split_bytes.all.peak": "peak_inactive_mem",
    "reserved_bytes.all.peak": "peak_reserved_mem",
    "num_alloc_retries": "alloc_retries",
}


@attrs.frozen(kw_only=True)
class MemoryMonitorSpec(CallbackSpec):
    """Logs ``memory/...`` of this rank's device, in GB of 10⁹ bytes, five significant digits.

    Attributes:
        memory_keys: names of ``torch.cuda.memory_stats`` and what to call each; by default the
            current and peak allocated, active, inactive and reserved memory and the retries.
    """

    kind = "memory_monitor"
    without_effect = MappingProxyType(
        {"dist_aggregate_batch_interval": "the numbers are those of rank 0"}
    )
    memory_keys: Mapping[str, str] | None = None

    def build(self, run: RunStarted) -> "MemoryMonitor":
        """Return the callback; without CUDA it logs the process's own memory, and says so."""
        if run.device != "cuda":
            _log.warning(
                "memory_monitor: no CUDA device, so only memory/host_rss and "
                "memory/peak_host_rss are logged"
            )
            return MemoryMonitor(_no_device_memory, keys={})
        return MemoryMonitor(_cuda_memory, keys=self.memory_keys or _CUDA_KEYS)


class MemoryMonitor:
    """Reads counters that the allocator keeps anyway; the device is not waited for."""

    key = MemoryMonitorSpec.kind

    def __init__(
        self, statistics: Callable[[], Mapping[str, Any]], *, keys: Mapping[str, str]
    ) -> None:
        """Take numbers from ``statistics`` and log those in ``keys``, under its values."""
        self._statistics = statistics
        self._keys = keys

    @hookimpl
    def step_finished(self, event: StepFinished) -> dict[str, float]:  # noqa: ARG002
        """Return the memory now and at its peak."""
        statistics = self._statistics()
        metrics: dict[str, float] = {}
        for key, name in self._keys.items():
            if key not in statistics:
                continue
            in_bytes = "bytes" in key
            value = statistics[key]
            metrics[f"memory/{name}"] = _gigabytes(value) if in_bytes else int(value)
        current, peak = _host_memory()
        if current is not None:
            metrics["memory/host_rss"] = _gigabytes(current)
        metrics["memory/peak_host_rss"] = _gigabytes(peak)
        return metrics


def _gigabytes(number_of_bytes: int) -> float:
    return float(f"{number_of_bytes / 1e9:.5g}")


def _no_device_memory() -> Mapping[str, Any]:
    return {}


def _cuda_memory() -> Mapping[str, Any]:
    import torch

    statistics: Mapping[str, Any] = torch.cuda.memory_stats()
    return statistics


def _host_memory() -> tuple[int | None, int]:
    """Return this process's resident bytes (None where the system does not tell) and their peak."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform != "linux":  # macOS counts bytes and has no /proc
        return None, peak
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return resident * resource.getpagesize(), peak * 1024
