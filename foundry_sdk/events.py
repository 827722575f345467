"""What happens in a run, as frozen numbers and paths; and what a callback may answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from foundry_sdk.units import Duration


class Probe(Protocol):
    """What a callback may read from the model of a running run.

    Every method is a collective: it is called on every rank or on none.
    """

    def parameter_norms(self) -> Mapping[str, float]:
        """Return the L2 norm of each whole (unsharded) parameter, by name."""

    def gradient_norms(self) -> Mapping[str, float]:
        """Return the L2 norm of each parameter's gradient; only while gradients exist."""

    def optimizer_norms(self) -> Mapping[str, float]:
        """Return the L2 norms of optimizer state, keyed ``moment/NAME`` and the like."""

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Continue each prompt with the model as it is now; temperature 0 is greedy."""


@attrs.frozen(kw_only=True, eq=False)
class RunStarted:
    """The run is assembled and, where there was a checkpoint, restored.

    Attributes:
        run_name: the run's name.
        run_dir: the run's folder; None for a run that leaves nothing on disk.
        rank: this process's number of ``world_size``.
        device: ``"cpu"`` or ``"cuda"``.
        device_name: such as ``"NVIDIA H200"``; the processor's name on a CPU.
        precision: the spec's precision, ``"amp_bf16"`` and so on.
        max_duration: when the run ends.
        total_steps: the same in steps; None where it is not known beforehand (``tok`` from
            uneven batches, ``sec``).
        step: optimizer steps already made (not 0 when resumed).
        global_batch, microbatch, sequence_length: the arithmetic of a step.
        parameters: number of model parameters (unsharded; tied ones once).
        flops_per_token: forward and backward, as the model counts them; None = unknown.
        resolved_spec: the whole spec as plain values, secrets redacted.
        choices: what was chosen for the user (attention kernel, microbatch …), by option.
        probe: reads from the model.
    """

    run_name: str
    run_dir: Path | None
    rank: int
    world_size: int
    device: str
    device_name: str
    precision: str
    max_duration: Duration
    total_steps: int | None
    step: int
    global_batch: int
    microbatch: int
    sequence_length: int
    parameters: int
    flops_per_token: int | None
    resolved_spec: Mapping[str, Any]
    choices: Mapping[str, str]
    probe: Probe


@attrs.frozen(kw_only=True)
class StepStarted:
    """A batch is drawn and its first forward is about to run. ``step`` counts from 1."""

    step: int
    epoch: int


@attrs.frozen(kw_only=True)
class GradientsReady:
    """Backward and clipping are done; the update is not. Numbers are equal on every rank.

    Attributes:
        step: number of the step under way, from 1.
        loss: mean over all labels of the global batch, nats.
        gradient_norm: global L2 norm before clipping.
        sample_ids: this rank's samples of the step, or None where the data has no numbers.
        last_checkpoint: newest committed checkpoint of this run.
    """

    step: int
    loss: float
    gradient_norm: float
    sample_ids: tuple[int, ...] | None
    last_checkpoint: Path | None


@attrs.frozen(kw_only=True)
class StepFinished:
    """One optimizer update is done (or was skipped). Numbers are equal on every rank.

    Attributes:
        step: steps made so far, this one included.
        epoch: epochs finished.
        batch_in_epoch: batches drawn in the epoch under way, this one included; 0 after the
            last one of an epoch, as the next is under way.
        samples, tokens: seen so far, by all ranks; tokens without padding.
        step_samples, step_tokens, step_labels: of this step, all ranks.
        loss: mean over the step's labels, nats; None at a step between two logging intervals.
        gradient_norm: before clipping; None as ``loss``.
        lrs: the learning rate that each parameter group was updated with.
        optimizer: class name of the torch optimizer.
        microbatch: sequences per forward.
        seconds: training time so far without evaluation and checkpointing, monotonic.
        step_seconds: wall time of this step.
        data_seconds: share of it spent waiting for the next batch.
        skipped: why the update was not made, if it was not.
    """

    step: int
    epoch: int
    batch_in_epoch: int
    samples: int
    tokens: int
    step_samples: int
    step_tokens: int
    step_labels: int
    loss: float | None
    gradient_norm: float | None
    lrs: tuple[float, ...]
    optimizer: str
    microbatch: int
    seconds: float
    step_seconds: float
    data_seconds: float
    skipped: str | None = None


@attrs.frozen(kw_only=True)
class EvaluationStarted:
    """An evaluation over one labelled loader begins. ``batches`` is None where not known."""

    step: int
    label: str
    batches: int | None


@attrs.frozen(kw_only=True)
class EvaluationFinished:
    """One eval loader was gone through.

    ``metrics`` has full keys, such as ``metrics/eval/LanguageCrossEntropy``.
    """

    step: int
    epoch: int
    label: str
    metrics: Mapping[str, float]
    seconds: float


@attrs.frozen(kw_only=True)
class CheckpointSaved:
    """A checkpoint is committed: whole, verified and visible. ``bytes`` over all ranks."""

    step: int
    path: Path
    seconds: float
    bytes: int


@attrs.frozen(kw_only=True)
class MetricsLogged:
    """Numbers of one moment, from the loop and all callbacks, as loggers get them (rank 0)."""

    step: int
    metrics: Mapping[str, float]


@attrs.frozen(kw_only=True)
class TableLogged:
    """Rows of text, such as prompts with their continuations (rank 0)."""

    step: int
    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@attrs.frozen(kw_only=True)
class RunFinished:
    """The loop has ended, by itself or because something asked it to.

    ``stopped_by`` is None after the whole duration, else the reason.
    """

    step: int
    seconds: float
    stopped_by: str | None
    error: str | None = None


@attrs.frozen(kw_only=True)
class Stop:
    """A callback's answer: end the run at this step's end (saved, exit code 0)."""

    reason: str


@attrs.frozen(kw_only=True)
class Skip:
    """An answer to ``gradients_ready``: leave this step's update out, on all ranks alike."""

    reason: str


@attrs.frozen(kw_only=True)
class Fail:
    """An answer to ``gradients_ready``: end the run with an error, before the update."""

    reason: str


@attrs.frozen(kw_only=True)
class Table:
    """An answer that becomes a ``TableLogged``."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Answer = Mapping[str, float] | Stop | Table
"""What ``step_finished`` and ``evaluation_finished`` may return: metrics, a stop, or a table."""
