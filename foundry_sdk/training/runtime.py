"""Processes, devices, precision and sharding. Nothing else in the SDK knows Accelerate."""

import gc
import json
import os
import platform
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from foundry_sdk.errors import LaunchError, RunError, SpecError
from foundry_sdk.faultpoints import reach
from foundry_sdk.launch.pulse import Pulse
from foundry_sdk.specs.run import FSDPSpec
from foundry_sdk.training.weights import ComputeWeights

if TYPE_CHECKING:
    from accelerate import Accelerator

_AUTOCAST = {
    "amp_bf16": torch.bfloat16,
    "amp_fp16": torch.float16,
    "amp_fp8": torch.bfloat16,  # what is not a float8 product
}


class Runtime:
    """This process among its peers: rank, device, collectives, precision, sharding.

    Accelerate's state belongs to the process, so there is one ``Runtime`` at a time; ``close``
    ends it and a next run may start another.

    Attributes:
        rank, world_size: of all processes.
        local_rank, local_world_size: on this machine.
        device: where this rank computes.
        sharded: parameters are split over ranks (FSDP2).
        weights: 16-bit copies that forwards compute in; None = the parameters themselves.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    sharded: bool
    weights: ComputeWeights | None = None

    @classmethod
    def start(
        cls,
        *,
        precision: str,
        fsdp: FSDPSpec | None = None,
        deterministic: bool = False,
        timeout: float = 600.0,
    ) -> "Runtime":
        """Join the process group that the environment describes, or be alone.

        Args:
            precision: ``fp32``, ``amp_bf16``, ``amp_fp16`` or ``amp_fp8``.
            fsdp: how parameters are sharded; without effect in one process.
            deterministic: the same bits from run to run, on a GPU too.
            timeout: seconds after which a collective that nobody else joins fails.

        Raises:
            LaunchError, SpecError: the environment or the precision does not fit this machine.
        """
        return cls(precision, fsdp, deterministic, timeout)

    def __init__(
        self, precision: str, fsdp: FSDPSpec | None, deterministic: bool, timeout: float
    ) -> None:
        self.precision = precision
        self._started_group = not dist.is_initialized()
        world_size = _check_environment()
        self._pulse = Pulse.begin(os.environ, timeout)
        with self._together("join"):
            self._accelerator = _accelerator(timeout)
        self.device = self._accelerator.device
        self.rank = self._accelerator.process_index
        self.world_size = self._accelerator.num_processes
        if self.world_size != world_size:
            raise RunError(
                f"the environment says WORLD_SIZE={world_size}, "
                f"but {self.world_size} process(es) joined"
            )
        self.local_rank = self._accelerator.local_process_index
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(self.world_size)))
        self._fsdp = fsdp if self.world_size > 1 else None
        self.sharded = self._fsdp is not None and self._fsdp.sharding_strategy != "NO_SHARD"
        if self.sharded:
            self._shard_with(self._fsdp_plugin())
        if precision == "amp_fp16" and self.device.type == "cpu":
            raise SpecError("precision: amp_fp16 needs a GPU; on a CPU use fp32 or amp_bf16")
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=precision == "amp_fp16", init_scale=2.0**16
        )
        # Counts are summed over ranks on the host, beside the GPU's work, never waiting for it.
        self._host_group = _host_group(timeout) if self.world_size > 1 else None
        self._deterministic_before = torch.are_deterministic_algorithms_enabled()
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False

    # ---- what the machine is

    def device_name(self) -> str:
        """Return the GPU's name, or the processor's."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return _processor_name()

    def seed(self, seed: int) -> None:
        """Seed Python, NumPy and torch with ``seed + rank`` (dropout differs between ranks)."""
        import numpy as np

        own = (seed + self.rank) % 2**32
        random.seed(own)
        np.random.seed(own)  # the global generator, which libraries use
        torch.manual_seed(own)

    # ---- collectives; every one is called on every rank

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._host_group is not None:
            with self._together("barrier"):
                dist.barrier(group=self._host_group)

    def sum_counts(self, counts: Sequence[int]) -> list[int]:
        """Return each count summed over ranks; runs on the host and leaves the GPU alone."""
        if self._host_group is None:
            return list(counts)
        total = torch.tensor(counts, dtype=torch.int64)
        with self._together("sum_counts"):
            dist.all_reduce(total, group=self._host_group)
        return [int(value) for value in total]

    def sum_on_device(self, values: Tensor) -> Tensor:
        """Return ``values`` (on this rank's device) summed over ranks, without waiting."""
        if self.world_size > 1:
            with self._together("sum_on_device"):
                dist.all_reduce(values)
        return values

    def all_agree(self, ok: bool) -> bool:
        """Return whether ``ok`` holds on every rank."""
        return self.sum_counts([int(not ok)])[0] == 0

    def any_rank(self, flag: bool) -> bool:
        """Return whether ``flag`` is set on at least one rank."""
        return not self.all_agree(not flag)

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401 - any JSON value
        """Return every rank's ``value`` (JSON), in rank order, on every rank."""
        if self._host_group is None:
            return [value]
        encoded = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        with self._together("gather"):
            dist.all_gather(lengths, torch.tensor([encoded.numel()]), group=self._host_group)
            longest = max(int(length) for length in lengths)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: encoded.numel()] = encoded
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
            dist.all_gather(parts, padded, group=self._host_group)
        return [
            json.loads(bytes(part[: int(length)].tolist()))
            for part, length in zip(parts, lengths, strict=True)
        ]

    def broadcast(self, value: Any) -> Any:  # noqa: ANN401 - any JSON value
        """Return rank 0's ``value`` (JSON) on every rank."""
        return self.gather(value if self.rank == 0 else None)[0]

    @contextmanager
    def _together(self, name: str) -> Iterator[None]:
        """Be in the collective ``name``: what the launcher's watch sees of this rank."""
        reach(f"collective.{name}")
        with self._pulse.within(name):
            yield

    # ---- the model

    def prepare(self, objective: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        """Shard or replicate ``objective``; return what is called in its place.

        The optimizer is made afterwards, over the parameters that are really trained. Accelerate
        wants one in the same call to re-point it at shards, so it is given one that is thrown
        away: ours then never sees a parameter that is about to be replaced.
        """
        if self.sharded:
            names = sorted({type(block).__name__ for block in blocks})
            self._accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = names
            placeholder = torch.optim.SGD(objective.parameters(), lr=0.0)
            prepared, _ = self._accelerator.prepare(objective, placeholder)
            _forget(self._accelerator)
            return _as_module(prepared)
        if self.world_size > 1:
            prepared = self._accelerator.prepare(objective.to(self.device))
            _forget(self._accelerator)
            return _as_module(prepared)
        return objective.to(self.device)

    def computing(self, *, microbatches: int = 2) -> AbstractContextManager[None]:
        """Return the context in which forwards and backwards run.

        Args:
            microbatches: how many backward passes add to the gradients before they are used.
        """
        return (
            nullcontext() if self.weights is None else self.weights.lent(microbatches=microbatches)
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which a forward's operations choose their precision."""
        dtype = _AUTOCAST.get(self.precision)
        if dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)

    @contextmanager
    def gradients_synchronised(self, objective: nn.Module, *, when: bool) -> Iterator[None]:
        """Reduce gradients over ranks in backward only ``when``: at the last microbatch."""
        from torch.distributed.fsdp import FSDPModule

        if isinstance(objective, FSDPModule):
            objective.set_requires_gradient_sync(when)
        if self.world_size == 1:
            yield
        elif when:
            with self._together("gradients"):
                yield
        elif isinstance(objective, FSDPModule):
            yield
        else:
            with objective.no_sync():  # type: ignore[operator]  # DDP's, the only other wrapper
                yield

    def reshard(self, objective: nn.Module) -> None:
        """Give whole parameters back after a forward without a backward, which would do it.

        The root keeps its parameters whole after a forward; until they are sharded again, the
        module's parameters are not those that the optimizer knows.
        """
        from torch.distributed.fsdp import FSDPModule

        for module in objective.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def close(self) -> None:
        """Leave the process group, after everybody has arrived."""
        from accelerate.state import AcceleratorState, GradientState, PartialState

        torch.use_deterministic_algorithms(self._deterministic_before)
        if self.world_size > 1 and dist.is_initialized() and self._started_group:
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        PartialState._reset_state()
        gc.collect()

    # ---- sharding

    def _fsdp_plugin(self) -> Any:  # noqa: ANN401 - Accelerate is untyped here
        from accelerate import FullyShardedDataParallelPlugin
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy

        assert self._fsdp is not None  # noqa: S101 - a type guard, called when sharded
        if self._fsdp.sharding_strategy == "HYBRID_SHARD" and (
            self.local_world_size != self.world_size
        ):
            raise RunError(
                "fsdp_config.sharding_strategy: HYBRID_SHARD over several machines is not "
                "supported here; use FULL_SHARD or SHARD_GRAD_OP"
            )
        compute = _AUTOCAST.get(self.precision)
        policy = {
            "PURE": MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=compute),
            "DEFAULT": MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32),
            "FULL": MixedPrecisionPolicy(),
        }[self._fsdp.mixed_precision]
        return FullyShardedDataParallelPlugin(
            fsdp_version=2,
            reshard_after_forward=self._fsdp.sharding_strategy != "SHARD_GRAD_OP",
            mixed_precision_policy=policy if compute else MixedPrecisionPolicy(),
            auto_wrap_policy="transformer_based_wrap",
            cpu_offload=CPUOffloadPolicy() if self._fsdp.cpu_offload else OffloadPolicy(),
            cpu_ram_efficient_loading=False,
            state_dict_type="SHARDED_STATE_DICT",
        )

    def _shard_with(self, plugin: Any) -> None:  # noqa: ANN401
        """Switch Accelerate to FSDP2, on a CPU too.

        On a CPU it ignores the plugin and would run DDP; its own state, set right after it was
        made, takes it down the path that GPUs take, so that gloo ranks test the same code.
        """
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedType

        AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = plugin


def _accelerator(timeout: float) -> "Accelerator":
    from accelerate import Accelerator, InitProcessGroupKwargs

    # Without cpu=True each rank of a CPU job believes that it is alone.
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",  # ours is ``autocast`` and FSDP's policy
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))],
    )


def _host_group(timeout: float) -> dist.ProcessGroup:
    # Without a timeout of its own it would wait half an hour.
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    if not isinstance(group, dist.ProcessGroup):  # this rank is always a member
        raise TypeError(f"expected a process group, got {group!r}")
    return group


def _forget(accelerator: "Accelerator") -> None:
    """Drop Accelerate's references to what it prepared: they would outlive the run."""
    accelerator._models.clear()
    accelerator._optimizers.clear()


def _as_module(prepared: object) -> nn.Module:
    if not isinstance(prepared, nn.Module):
        raise TypeError(f"expected a module from Accelerate, got {type(prepared).__name__}")
    return prepared


def _check_environment(environ: Mapping[str, str] = os.environ) -> int:
    """Return WORLD_SIZE, after checking that the ranks of the environment make sense."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: environ[name] for name in names if name in environ}
    for name, text in given.items():
        if not text.isdigit():
            raise LaunchError(f"environment variable {name}={text!r}: expected a whole number")
    world_size = int(given.get("WORLD_SIZE", "1"))
    rank = int(given.get("RANK", "0"))
    if rank >= world_size:
        raise LaunchError(
            f"environment variables: RANK={rank} is not below WORLD_SIZE={world_size}"
        )
    if world_size > 1:
        missing = [n for n in (*names, "MASTER_ADDR", "MASTER_PORT") if n not in environ]
        if missing:
            raise LaunchError(
                f"WORLD_SIZE={world_size}, but {', '.join(missing)} not set; "
                "start with 'foundry train', torchrun or accelerate launch"
            )
    return world_size


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:  # no such file outside Linux
        pass
    return platform.processor() or platform.machine()
