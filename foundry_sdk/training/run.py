"""A whole run: process group, folder, parts, loop, and a record of how it ended."""

import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk.callbacks.bus import EventBus
from foundry_sdk.checkpoint.layout import folder_name
from foundry_sdk.checkpoint.objects import shown
from foundry_sdk.errors import FoundryError, LockedRunError, RunError, RunFolderError, SpecError
from foundry_sdk.events import RunFinished, RunStarted
from foundry_sdk.runs.record import LOCK_FILE, RunRecord, RunStatus
from foundry_sdk.runs.redact import redact
from foundry_sdk.specs.run import RunSpec
from foundry_sdk.specs.structure import unstructure
from foundry_sdk.training.assemble import Assembly, assemble
from foundry_sdk.training.feed import Drawn, Feed
from foundry_sdk.training.loop import Loop, LoopResult
from foundry_sdk.training.preflight import preflight
from foundry_sdk.training.probe import ModelProbe
from foundry_sdk.training.runtime import Runtime
from foundry_sdk.training.saving import Saver, found_checkpoint, open_store
from foundry_sdk.training.search import choose_microbatch
from foundry_sdk.training.signals import StopRequest
from foundry_sdk.training.subscribers import subscribers

_GENERATED: Final = "run-"
"""How the name of a run starts that was given none."""


@attrs.frozen(kw_only=True)
class RunResult:
    """What ``fit`` returns, the same on every rank.

    Attributes:
        steps, tokens: of the whole run, earlier starts included.
        seconds: training time without evaluation and checkpointing.
        train_loss: of the last step that was read, nats per label.
        eval_metrics: of the last evaluation, by full key.
        checkpoints: committed ones that are still there, oldest first.
        run_dir: the run's folder.
        stopped_by: None after the whole duration, else why it ended before.
        signal: number of the signal that asked it to end, if one did.
    """

    steps: int
    tokens: int
    seconds: float
    train_loss: float | None
    eval_metrics: Mapping[str, float]
    checkpoints: tuple[Path, ...]
    run_dir: Path
    stopped_by: str | None
    signal: int | None


def train(spec: RunSpec) -> RunResult:
    """Run ``spec`` from start or newest checkpoint to its end, on every rank.

    Raises:
        SpecError, DataError: before any work.
        RunError: the run could not go on; its record says why.
    """
    logging.getLogger("foundry_sdk").setLevel(spec.python_log_level.upper())
    with StopRequest() as signals:
        runtime = Runtime.start(
            precision=spec.precision,
            fsdp=spec.fsdp_config,
            deterministic=spec.deterministic,
            timeout=spec.dist_timeout,
        )
        try:
            record = _open_record(spec, runtime)
            try:
                return _Run(spec, runtime, record, signals).go()
            finally:
                record.release()
        finally:
            runtime.close()


class _Run:
    """One start of a run, from its folder to its end."""

    def __init__(
        self, spec: RunSpec, runtime: Runtime, record: RunRecord, signals: StopRequest
    ) -> None:
        self.spec = spec
        self.runtime = runtime
        self.record = record
        self.signals = signals
        self.store = open_store(spec, record.path, runtime)
        self.folder = self.store.folder

    def go(self) -> RunResult:
        """Assemble, restore, train; whatever happens, the record says how it ended."""
        self.store.prepare()
        try:
            assembly = assemble(self.spec, self.runtime, cache_dir=self.record.path / "cache")
            try:
                return self._train(assembly)
            finally:
                assembly.source.close()
                for evaluator in assembly.evaluators:
                    evaluator.source.close()
        finally:
            self.store.close()

    def _train(self, assembly: Assembly) -> RunResult:
        saver = Saver(assembly, self.store)
        callbacks = self._restore(saver)
        if self.spec.save_overwrite and not self.spec.autoresume:
            self.store.discard_after(assembly.state.step)  # they are of another course
        preflight(assembly)
        feed = Feed(assembly.source, self.runtime)
        feed.start_at(assembly.state.batch_in_epoch)
        if self._searches(assembly):
            choose_microbatch(assembly, feed, self.record.path / "cache")
        started = self._started(assembly)
        assembly.bus = self._bus(started)
        assembly.bus.load_state_dict(callbacks)
        self._write_start(assembly, started)
        assembly.bus.run_started(started)

        def save(drawn: Drawn | None) -> Path:
            saved = saver.save(drawn)
            assembly.bus.checkpoint_saved(saved)
            return saved.path

        loop = Loop(assembly, feed=feed, save=save, stop_requested=lambda: self.signals.reason)
        try:
            result = loop.run()
            self.store.finish()
        except BaseException as error:
            self._finish(assembly, "failed", f"{type(error).__name__}: {error}", error=str(error))
            raise
        interrupted = self.signals.reason is not None
        status: RunStatus = (
            "finished" if result.stopped_by is None else "interrupted" if interrupted else "stopped"
        )
        self._finish(assembly, status, result.stopped_by, result=result)
        return self._result(assembly, result)

    def _searches(self, assembly: Assembly) -> bool:
        """Return whether the microbatch is still to be found; a resumed run keeps its own."""
        return (
            self.spec.device_train_microbatch_size == "auto"
            and self.runtime.device.type == "cuda"
            and assembly.state.step == 0
            and not self.spec.deterministic
        )

    def _restore(self, saver: Saver) -> Mapping[str, Any]:
        """Go on from the newest checkpoint, or take what ``load_path`` says; callbacks' state."""
        spec = self.spec
        if spec.autoresume:
            newest = self.store.newest()
            if newest is not None:
                return saver.resume(newest)
        elif not spec.save_overwrite and self.store.holds_any():
            given = shown(spec.save_folder or str(self.folder))
            raise RunFolderError(
                f"save_folder {given} already holds checkpoints; go on from them with "
                "autoresume: true, or choose another folder or run_name"
            )
        if spec.load_path is None:
            return {}
        cache = self.record.path / "cache"
        with found_checkpoint(
            self.store, spec.load_path, ranks=self.runtime, cache=cache
        ) as checkpoint:
            if spec.load_weights_only:
                saver.load_weights(checkpoint)
                return {}
            return saver.resume(checkpoint)

    def _bus(self, started: RunStarted) -> EventBus:
        """Build callbacks and loggers; if one cannot be, on whatever rank, all ranks raise."""
        bus, failure = None, None
        try:
            bus = EventBus(tuple(subscribers(self.spec, started)))
        except FoundryError as error:
            failure = str(error)
        failures = [text for text in self.runtime.gather(failure) if text]
        if bus is None or failures:
            raise RunError(failures[0])
        return bus

    def _started(self, assembly: Assembly) -> RunStarted:
        spec, runtime = self.spec, self.runtime
        return RunStarted(
            run_name=self.record.path.name,
            run_dir=self.record.path,
            rank=runtime.rank,
            world_size=runtime.world_size,
            device=runtime.device.type,
            device_name=runtime.device_name(),
            precision=spec.precision,
            max_duration=spec.max_duration,
            total_steps=assembly.total_steps,
            step=assembly.state.step,
            global_batch=spec.global_train_batch_size,
            microbatch=assembly.microbatching.size,
            sequence_length=spec.max_seq_len,
            parameters=sum(p.numel() for p in assembly.core.model.parameters()),
            flops_per_token=spec.model.flops_per_token(spec.max_seq_len),
            resolved_spec=redact(unstructure(spec)),
            choices=dict(assembly.choices),
            probe=ModelProbe(assembly),
        )

    def _write_start(self, assembly: Assembly, started: RunStarted) -> None:
        names = self.runtime.gather(self.runtime.device_name())
        self.record.start(
            resolved_spec=started.resolved_spec,
            choices=started.choices,
            devices={"world_size": self.runtime.world_size, "names": names},
            data=_describe(assembly),
            seeds={"seed": self.spec.seed},
            command=sys.argv,
        )

    def _finish(
        self,
        assembly: Assembly,
        status: RunStatus,
        reason: str | None,
        *,
        result: LoopResult | None = None,
        error: str | None = None,
    ) -> None:
        state = assembly.state
        summary: dict[str, float] = {
            "steps": state.step,
            "tokens": state.tokens,
            "seconds": state.seconds,
        }
        if result is not None:
            summary |= result.eval_metrics
            if result.last_loss is not None:
                summary["loss/train/total"] = result.last_loss
        # First the record: a callback that fails at the end must not leave the run "running".
        self.record.finish(status=status, reason=reason, summary=summary, data=_describe(assembly))
        assembly.bus.run_finished(
            RunFinished(step=state.step, seconds=state.seconds, stopped_by=reason, error=error)
        )

    def _result(self, assembly: Assembly, result: LoopResult) -> RunResult:
        folders = [self.folder / folder_name(step) for step in sorted(self.store.steps())]
        return RunResult(
            steps=assembly.state.step,
            tokens=assembly.state.tokens,
            seconds=assembly.state.seconds,
            train_loss=result.last_loss,
            eval_metrics=result.eval_metrics,
            checkpoints=tuple(folders),
            run_dir=self.record.path,
            stopped_by=result.stopped_by,
            signal=self.signals.number,
        )


def _describe(assembly: Assembly) -> dict[str, Any]:
    """Return what there is to say of each loader's data now."""
    sources = {"train_loader": assembly.source}
    sources |= {evaluator.label: evaluator.source for evaluator in assembly.evaluators}
    return {label: source.describe() for label, source in sources.items()}


def _open_record(spec: RunSpec, runtime: Runtime) -> RunRecord:
    """Open the run's folder; if rank 0 can't, every rank raises its reason."""
    name = runtime.broadcast(_name(spec))
    if spec.autoresume and name.startswith(_GENERATED):
        raise SpecError(
            "autoresume: needs a run_name or a save_folder: a run is known by its folder"
        )
    root = Path(spec.run_root)
    resume = spec.autoresume or spec.save_overwrite
    record: RunRecord | None = None
    failure: list[str] | None = None
    try:
        record = RunRecord.open(root, name, rank=runtime.rank, resume=resume)
        if spec.save_overwrite and not spec.autoresume and runtime.rank == 0:
            _clear(record.path)
    except RunError as error:
        failure = [type(error).__name__, str(error)]
    failure = runtime.broadcast(failure)
    if record is None or failure is not None:
        kind, text = failure or ["RunError", "the run's folder cannot be opened"]
        raise LockedRunError(text) if kind == "LockedRunError" else RunFolderError(text)
    return record


def _name(spec: RunSpec) -> str:
    """Return the run's name: given, from the environment, its save folder's, or a new one."""
    given = spec.run_name or os.environ.get("RUN_NAME")
    if given:
        return given
    if spec.autoresume and spec.save_folder:
        return Path(shown(spec.save_folder)).name
    return f"{_GENERATED}{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def _clear(path: Path) -> None:
    """Empty the folder of an earlier run, which ``save_overwrite`` asks for; the lock stays."""
    for entry in path.iterdir():
        if entry.name == LOCK_FILE:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
