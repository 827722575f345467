"""The arithmetic of a step and of a run: no device, no data, no download."""

import math

import attrs

from foundry_sdk.errors import SpecError
from foundry_sdk.specs.run import RunSpec
from foundry_sdk.units import Duration, TimeUnit


@attrs.frozen(kw_only=True)
class BatchPlan:
    """How the global batch is executed.

    Attributes:
        global_batch: sequences per step, over all ranks (G).
        world_size: ranks (W).
        device_batch: sequences per rank and step (D = G / W).
        microbatch: sequences per forward (M).
    """

    global_batch: int
    world_size: int
    device_batch: int
    microbatch: int

    @classmethod
    def of(cls, global_batch: int, world_size: int, microbatch: int) -> "BatchPlan":
        """Divide ``global_batch``; a microbatch above the device batch is cut to it.

        Raises:
            SpecError: the world does not divide the global batch.
        """
        if global_batch % world_size:
            below = global_batch - global_batch % world_size
            near = [str(n) for n in (below, below + world_size) if n > 0]
            raise SpecError(
                f"global_train_batch_size: {global_batch} is not divisible by the world size "
                f"{world_size}; nearest that work: {' or '.join(near)}"
            )
        device_batch = global_batch // world_size
        return cls(
            global_batch=global_batch,
            world_size=world_size,
            device_batch=device_batch,
            microbatch=min(microbatch, device_batch),
        )

    @property
    def microbatches(self) -> int:
        """Return the forwards per rank and step; the last may be smaller."""
        return math.ceil(self.device_batch / self.microbatch)


def steps_of(duration: Duration, *, steps_per_epoch: int | None, samples: int, tokens: int) -> int:
    """Return ``duration`` in steps of ``samples`` sequences and ``tokens`` tokens.

    Raises:
        SpecError: epochs of data without a known length, or a unit that is no count of steps.
    """
    match duration.unit:
        case TimeUnit.BATCH:
            return int(duration.value)
        case TimeUnit.EPOCH:
            if steps_per_epoch is None:
                raise SpecError(f"{duration}: the data has no known end; say it in ba, sp or tok")
            return int(duration.value) * steps_per_epoch
        case TimeUnit.SAMPLE:
            return math.ceil(duration.value / samples)
        case TimeUnit.TOKEN:
            return math.ceil(duration.value / tokens)
        case _:
            raise SpecError(f"{duration}: cannot be said in steps")


@attrs.frozen(kw_only=True)
class Clock:
    """How far a run is, in every unit."""

    step: int
    epoch: int
    samples: int
    tokens: int
    seconds: float

    def in_unit(self, unit: TimeUnit) -> float:
        """Return this point in ``unit`` (not ``dur``)."""
        return {
            TimeUnit.BATCH: self.step,
            TimeUnit.EPOCH: self.epoch,
            TimeUnit.SAMPLE: self.samples,
            TimeUnit.TOKEN: self.tokens,
            TimeUnit.SECOND: self.seconds,
        }[unit]

    def reached(self, duration: Duration) -> bool:
        """Return whether ``duration`` is over."""
        return self.in_unit(duration.unit) >= duration.value


def due(interval: Duration, before: Clock, now: Clock, total_steps: int | None) -> bool:
    """Return whether a multiple of ``interval`` lies in (``before``, ``now``].

    Crossing counts, not equality, so a step that jumps over a multiple of samples or tokens is
    not missed.
    """
    if interval.value <= 0:
        return False
    if interval.unit is TimeUnit.DURATION:
        if total_steps is None:
            return False
        every = max(1, math.ceil(total_steps * interval.value))
        return now.step // every != before.step // every
    first, last = before.in_unit(interval.unit), now.in_unit(interval.unit)
    return first // interval.value != last // interval.value


@attrs.frozen(kw_only=True)
class RunPlan:
    """What ``foundry plan`` prints: the arithmetic of a run, before anything is built.

    Attributes:
        batch: how a step is executed.
        sequence_length: tokens per sequence.
        total_steps: of the run; None where only the data knows.
        tokens_per_step, total_tokens: over all ranks.
        parameters: of the model; None where the spec alone does not tell.
        state_bytes_per_rank: parameters, gradients and optimizer state in float32, sharded over
            the ranks where the spec shards; None as ``parameters``.
        flops_per_token: forward and backward; None where unknown.
    """

    batch: BatchPlan
    sequence_length: int
    total_steps: int | None
    tokens_per_step: int
    total_tokens: int | None
    parameters: int | None
    state_bytes_per_rank: int | None
    flops_per_token: int | None


def plan_run(spec: RunSpec, *, world_size: int = 1) -> RunPlan:
    """Return the arithmetic of ``spec`` on ``world_size`` ranks.

    ``device_train_microbatch_size: auto`` is shown as the device batch, which it starts from.

    Raises:
        SpecError: the world does not divide the global batch.
    """
    wanted = spec.device_train_microbatch_size
    batch = BatchPlan.of(
        spec.global_train_batch_size,
        world_size,
        spec.global_train_batch_size if wanted == "auto" else wanted,
    )
    tokens = spec.global_train_batch_size * spec.max_seq_len
    countable = spec.max_duration.unit in {TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.TOKEN}
    steps = None
    if countable:
        steps = steps_of(
            spec.max_duration,
            steps_per_epoch=None,
            samples=spec.global_train_batch_size,
            tokens=tokens,
        )
    parameters = spec.model.parameters()
    sharded = spec.fsdp_config is not None and spec.fsdp_config.sharding_strategy != "NO_SHARD"
    state = None
    of_optimizer = spec.optimizer.state_floats()
    if parameters is not None and of_optimizer is not None:
        floats = 2 + of_optimizer  # the parameter, its gradient, the optimizer's state
        state = math.ceil(4 * floats * parameters / (world_size if sharded else 1))
    return RunPlan(
        batch=batch,
        sequence_length=spec.max_seq_len,
        total_steps=steps,
        tokens_per_step=tokens,
        total_tokens=None if steps is None else steps * tokens,
        parameters=parameters,
        state_bytes_per_rank=state,
        flops_per_token=spec.model.flops_per_token(spec.max_seq_len),
    )
