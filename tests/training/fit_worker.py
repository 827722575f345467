"""One rank of small runs: builds specs in Python and trains; the argument is a list in JSON.

The data is a table of numbers in memory, cut by rank, with labels of uneven count, so that a mean
of means would show.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from foundry_sdk.batch import IGNORE_INDEX, Batch, LossOutput
from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.callbacks.guards import LossSpikeGuardSpec, NaNMonitorSpec
from foundry_sdk.data.contract import BatchSource, DataSpec, LoaderContext, TokenizerSpec
from foundry_sdk.events import GradientsReady, RunStarted, StepFinished, Stop
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.losses.contract import LossSpec
from foundry_sdk.losses.cross_entropy import CrossEntropy
from foundry_sdk.losses.module import LogitsLoss
from foundry_sdk.models.mpt.spec import AttentionSpec, MPTSpec
from foundry_sdk.optim.contract import OptimizerSpec
from foundry_sdk.optim.schedules import CosineWithWarmupSpec
from foundry_sdk.optim.specs import DecoupledAdamWSpec, DecoupledLionWSpec
from foundry_sdk.pretrainer import Pretrainer
from foundry_sdk.specs.run import (
    AlgorithmsSpec,
    EvalLoader,
    FSDPSpec,
    GradientClippingSpec,
    PretrainSpec,
)
from foundry_sdk.units import Duration


class Memory:
    """Rows of one permutation per epoch; this rank's slice of each global batch."""

    def __init__(self, context: LoaderContext, rows: int) -> None:
        self.context = context
        self.rows = rows
        self.epoch = 0
        self.taken = 0

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.epoch))
        if not self.context.training:
            order = torch.arange(self.rows)
        whole = self.context.device_batch * self.context.world_size
        while self.taken < self.batches_per_epoch():
            start = self.taken * whole + self.context.rank * self.context.device_batch
            self.taken += 1
            yield self._batch(order[start : start + self.context.device_batch])
        self.epoch, self.taken = self.epoch + 1, 0

    def _batch(self, ids: torch.Tensor) -> Batch:
        rows = [self._row(int(i)) for i in ids]
        return Batch(
            input_ids=torch.stack([row[0] for row in rows]),
            labels=torch.stack([row[1] for row in rows]),
            sample_ids=ids.clone(),
        )

    def _row(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 + number)
        tokens = torch.randint(0, 60, (self.context.max_seq_len + 1,), generator=generator)
        labels = tokens[1:].clone()
        labels[: number % self.context.max_seq_len] = IGNORE_INDEX
        return tokens[:-1], labels

    def batches_per_epoch(self) -> int:
        return self.rows // (self.context.device_batch * self.context.world_size)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.taken = state["epoch"], state["taken"]

    def describe(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def close(self) -> None:
        pass


@attrs.frozen(kw_only=True)
class MemorySpec(DataSpec):
    """Rows made of numbers."""

    kind = "memory"
    rows: int

    def build(self, context: LoaderContext) -> BatchSource:
        return Memory(context, self.rows)


@attrs.frozen(kw_only=True)
class KillAtSpec(CallbackSpec):
    """Ends the process as a power failure would, or asks it to stop."""

    kind = "kill_at"
    step: int
    how: str

    def build(self, run: RunStarted) -> object:
        return KillAt(self)


class KillAt:
    def __init__(self, spec: KillAtSpec) -> None:
        self.spec = spec

    @hookimpl
    def step_finished(self, event: StepFinished) -> Stop | None:
        if event.step == self.spec.step:
            if self.spec.how == "kill":
                os._exit(9)
            return Stop(reason="enough")
        return None


@attrs.frozen(kw_only=True)
class PoisonedSpec(LossSpec):
    """Cross-entropy that turns into something else in one training forward of one rank."""

    kind = "poisoned"
    forward: int
    rank: int
    factor: float

    def build(self) -> LogitsLoss:
        return Poisoned(self)


class Poisoned(LogitsLoss):
    def __init__(self, spec: PoisonedSpec) -> None:
        super().__init__()
        self.spec = spec
        self.inner = CrossEntropy()
        self.forwards = 0

    def is_cross_entropy(self) -> bool:
        return True

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> LossOutput:
        loss_sum, count = self.inner(logits, labels)
        self.forwards += self.training
        hit = self.training and self.forwards == self.spec.forward
        if hit and int(os.environ.get("RANK", "0")) == self.spec.rank:
            loss_sum = loss_sum * self.spec.factor
        return LossOutput(loss_sum, count)


class Watcher:
    """Asks to see every gradient, so that nothing may be updated before."""

    @hookimpl
    def gradients_ready(self, event: GradientsReady) -> None:
        assert event.step > 0


@attrs.frozen(kw_only=True)
class WatcherSpec(CallbackSpec):
    """Makes each step wait before its update."""

    kind = "watcher"

    def build(self, run: RunStarted) -> object:
        return Watcher()


def optimizer(arguments: Mapping[str, Any]) -> OptimizerSpec:
    if arguments.get("optimizer") == "lion":
        return DecoupledLionWSpec(lr=1e-3, stochastic_rounding=arguments.get("weights") == "bf16")
    return DecoupledAdamWSpec(lr=1e-2)


def main(arguments: Mapping[str, Any]) -> None:
    torch.set_num_threads(1)
    if arguments.get("search"):  # as on one GPU
        from foundry_sdk.training import run as running

        running._Run._searches = lambda self, assembly: assembly.state.step == 0  # type: ignore[method-assign]
    kill, poison, guard = (arguments.get(key) for key in ("kill", "poison", "guard"))
    spec = PretrainSpec(
        model=MPTSpec(
            d_model=32,
            n_heads=4,
            n_layers=2,
            max_seq_len=16,
            vocab_size=64,
            resid_pdrop=arguments.get("dropout", 0.0),
            attn_config=AttentionSpec(attn_impl=arguments.get("attention", "torch")),
        ),
        tokenizer=TokenizerSpec(name=arguments["tokenizer"]),
        optimizer=optimizer(arguments),
        scheduler=CosineWithWarmupSpec(t_warmup=Duration.parse("3ba")),
        algorithms=AlgorithmsSpec(gradient_clipping=GradientClippingSpec(clipping_threshold=0.5)),
        train_loader=MemorySpec(rows=arguments.get("rows", 40)),
        eval_loader=(EvalLoader(loader=MemorySpec(rows=8)),),
        eval_interval=Duration.parse("6ba"),
        max_duration=Duration.parse(arguments["duration"]),
        max_seq_len=16,
        global_train_batch_size=8,
        device_train_microbatch_size=arguments["microbatch"],
        device_eval_batch_size=2,
        precision=arguments.get("precision", "fp32"),
        weights=arguments.get("weights", "auto"),
        deterministic=arguments.get("deterministic", False),
        fsdp_config=FSDPSpec(**arguments["fsdp"]) if arguments.get("fsdp") else None,
        run_name=arguments["name"],
        run_root=arguments["root"],
        autoresume=arguments.get("autoresume", False),
        save_interval=Duration.parse(arguments.get("save", "5ba")),
        log_to_console=False,
        loss=PoisonedSpec(**poison) if poison else None,
        callbacks=(
            *([KillAtSpec(step=kill[0], how=kill[1])] if kill else []),
            *([NaNMonitorSpec(policy="skip")] if arguments.get("skip_nan") else []),
            *([LossSpikeGuardSpec(**guard)] if guard else []),
            *([WatcherSpec()] if arguments.get("watched") else []),
        ),
        load_path=arguments.get("load_path"),
        load_weights_only=arguments.get("load_weights_only", False),
        eval_first=arguments.get("eval_first", False),
    )
    result = Pretrainer(spec).fit()
    assert result.run_dir == Path(arguments["root"]) / arguments["name"]


if __name__ == "__main__":
    for run in json.loads(sys.argv[1]):
        # A port of its own: a quick rank would meet the store of the run before at the same one.
        os.environ["MASTER_PORT"] = run["port"]
        main(run)
