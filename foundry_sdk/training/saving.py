"""What goes into a checkpoint of a run, and how a run goes on from one."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from foundry_sdk.checkpoint.mirrored import MirroredStore, fetch_checkpoint
from foundry_sdk.checkpoint.objects import is_uri
from foundry_sdk.checkpoint.patience import Patience
from foundry_sdk.checkpoint.ranks import Ranks
from foundry_sdk.checkpoint.rng import capture_rng, restore_rng
from foundry_sdk.checkpoint.state import load_into, model_and_optimizer_tensors
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.checkpoint.verify import Checkpoint
from foundry_sdk.errors import CheckpointError
from foundry_sdk.events import CheckpointSaved
from foundry_sdk.specs.run import RunSpec
from foundry_sdk.training.assemble import Assembly
from foundry_sdk.training.feed import Drawn
from foundry_sdk.training.state import TrainState

CHECKPOINTS: Final = "checkpoints"
_BINDING: Final = ("global_train_batch_size", "max_seq_len", "seed")
"""Spec fields that a run must not change in its middle: they decide which sample comes when."""


class Saver:
    """Saves and restores everything that the rest of a run depends on."""

    def __init__(self, assembly: Assembly, store: CheckpointStore) -> None:
        self._a = assembly
        self._store = store
        self._callbacks: Mapping[str, Any] = {}
        self._position: dict[str, Any] | None = None

    def save(self, drawn: Drawn | None) -> CheckpointSaved:
        """Write a checkpoint of the state after the step of ``drawn`` (None: before any)."""
        a = self._a
        tensors, scalars = model_and_optimizer_tensors(
            a.core.model, None if a.spec.save_weights_only else a.optimizer
        )
        position = drawn.position if drawn is not None else a.source.state_dict()
        saved = self._store.save(
            a.state.step,
            tensors,
            {
                **scalars,
                "train": a.state.to_dict(),
                "data": position,
                "callbacks": a.bus.state_dict(),
                "scaler": a.runtime.scaler.state_dict(),
                "microbatch": a.microbatching.size,
                "binding": {name: getattr(a.spec, name) for name in _BINDING},
                "model": a.core.model.config(),
            },
            {"rng": capture_rng()},
        )
        return CheckpointSaved(
            step=a.state.step, path=saved.path, seconds=saved.seconds, bytes=saved.bytes
        )

    def resume(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """Go on from ``checkpoint``; return the callbacks' state.

        Raises:
            CheckpointError: it is of another model, or of a run with other data order.
        """
        a = self._a
        scalars, per_rank = self._fill(checkpoint, with_optimizer=True)
        self._refuse_other_run(checkpoint, scalars["binding"])
        a.state = TrainState.from_dict(scalars["train"])
        a.source.load_state_dict(scalars["data"])
        a.runtime.scaler.load_state_dict(scalars["scaler"])
        if a.spec.device_train_microbatch_size == "auto":
            a.microbatching.size = min(scalars["microbatch"], a.plan.device_batch)
        if per_rank is not None:
            restore_rng(per_rank["rng"])
        else:  # another number of ranks: no state to restore, but never the start's again
            a.runtime.seed(a.spec.seed + a.state.step)
        callbacks: Mapping[str, Any] = scalars["callbacks"]
        return callbacks

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Take the model's weights from ``checkpoint`` and nothing else."""
        self._fill(checkpoint, with_optimizer=False)

    def _fill(
        self, checkpoint: Checkpoint, *, with_optimizer: bool
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        a = self._a
        return load_into(
            self._store,
            checkpoint,
            a.core.model,
            a.optimizer if with_optimizer else None,
            strict=a.spec.load_strict_model_weights,
        )

    def _refuse_other_run(self, checkpoint: Checkpoint, binding: Mapping[str, Any]) -> None:
        changed = [
            f"{name}: {was!r} then, {getattr(self._a.spec, name)!r} now"
            for name, was in binding.items()
            if getattr(self._a.spec, name) != was
        ]
        if changed:
            raise CheckpointError(
                f"{checkpoint.path}: the run it belongs to had other settings that decide the "
                f"order of the data: {'; '.join(changed)}; put them back, or start a new run with "
                "load_path and load_weights_only: true"
            )


def open_store(spec: RunSpec, run_dir: Path, ranks: Ranks) -> CheckpointStore:
    """Return where a run's checkpoints go; nothing is touched yet.

    A ``save_folder`` that is a URI has its local copies where those of other runs are.

    Raises:
        CheckpointError: there can be no checkpoints there.
    """
    keep, own = spec.save_num_checkpoints_to_keep, run_dir / CHECKPOINTS
    if spec.save_folder is None or not is_uri(spec.save_folder):
        return CheckpointStore(spec.save_folder or own, ranks, keep=keep)
    patience = Patience.from_environment()
    return MirroredStore(own, ranks, spec.save_folder, keep=keep, patience=patience)


@contextmanager
def found_checkpoint(
    store: CheckpointStore, path: str, *, ranks: Ranks, cache: Path
) -> Iterator[Checkpoint]:
    """Give the checkpoint that ``load_path`` means: a step, a folder of them, or a run.

    One that is elsewhere is fetched into a folder in ``cache``, which is deleted afterwards.

    Raises:
        CheckpointError: there is none, or none that is whole.
    """
    if is_uri(path):
        folder = cache / "load_path"
        yield fetch_checkpoint(path, ranks, folder, patience=Patience.from_environment())
        ranks.barrier()  # every rank has read it
        shutil.rmtree(folder, ignore_errors=True)
        return
    given = Path(path)
    inside = given / CHECKPOINTS
    yield store.at(inside if inside.is_dir() else given)
