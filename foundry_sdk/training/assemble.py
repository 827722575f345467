"""From a spec to everything that the loop needs."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import torch
from torch import nn

from foundry_sdk.data.contract import BatchSource, LoaderContext
from foundry_sdk.data.tokenizer import load_tokenizer
from foundry_sdk.errors import PluginError, SpecError
from foundry_sdk.losses.contract import LossSpec
from foundry_sdk.losses.specs import CrossEntropySpec, FusedCrossEntropySpec
from foundry_sdk.models.language_model import LanguageModel
from foundry_sdk.optim.contract import RunLength, Schedule
from foundry_sdk.optim.groups import param_groups
from foundry_sdk.specs.checks import HALF_WEIGHTS
from foundry_sdk.specs.run import CompileSpec, Float8Spec, RunSpec, Weights
from foundry_sdk.training.evaluate import Evaluator
from foundry_sdk.training.float8 import convert_blocks
from foundry_sdk.training.microbatch import Microbatching, first_size
from foundry_sdk.training.objective import Objective
from foundry_sdk.training.plan import BatchPlan, steps_of
from foundry_sdk.training.recompute import checkpoint_activations
from foundry_sdk.training.runtime import Runtime
from foundry_sdk.training.state import TrainState
from foundry_sdk.training.weights import ComputeWeights
from foundry_sdk.units import TimeUnit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foundry_sdk.callbacks.bus import EventBus


@attrs.define(kw_only=True, eq=False)
class Assembly:
    """A run's parts.

    Attributes:
        spec: what was asked for.
        runtime: this process among its peers.
        tokenizer: of the run.
        core: model and loss, as built.
        objective: ``core`` sharded or replicated: what is called.
        parameters: those that are trained, of ``objective``.
        optimizer, schedule: ``group["lr"] = group["initial_lr"] * schedule(progress)``.
        plan: the arithmetic of a step.
        microbatching: how a step's forwards are run.
        source: this rank's training batches.
        evaluators: eval loaders, in the spec's order.
        state: how far the run is.
        bus: callbacks and loggers; set once the run's start is known.
        total_steps: None where only the data knows.
        choices: what was chosen for the user, by option.
    """

    spec: RunSpec
    runtime: Runtime
    tokenizer: "PreTrainedTokenizerBase"
    core: Objective
    objective: nn.Module
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    plan: BatchPlan
    microbatching: Microbatching
    source: BatchSource
    evaluators: tuple[Evaluator, ...]
    state: TrainState
    total_steps: int | None
    choices: dict[str, str]
    bus: "EventBus" = attrs.field(init=False)


def assemble(spec: RunSpec, runtime: Runtime, *, cache_dir: Path | None) -> Assembly:
    """Build every part, on every rank.

    Raises:
        SpecError: parts do not fit each other.
        DataError: the data is missing, broken, or of another tokenizer.
    """
    choices: dict[str, str] = {}
    runtime.seed(spec.seed)
    tokenizer = load_tokenizer(spec.tokenizer)
    size, chosen = first_size(
        spec.device_train_microbatch_size,
        runtime=runtime,
        device_batch=BatchPlan.of(spec.global_train_batch_size, runtime.world_size, 1).device_batch,
        sequence_length=spec.max_seq_len,
    )
    if chosen:
        choices["device_train_microbatch_size"] = chosen
    plan = BatchPlan.of(spec.global_train_batch_size, runtime.world_size, size)
    context = LoaderContext(
        tokenizer=tokenizer,
        rank=runtime.rank,
        world_size=runtime.world_size,
        device_batch=plan.device_batch,
        max_seq_len=spec.max_seq_len,
        seed=spec.seed,
        training=True,
        encoder_decoder=spec.model.encoder_decoder(),
        isolates_documents=spec.model.isolates_documents() is True,
        cache_dir=cache_dir,
    )
    # First the data: what is wrong with it is found before a model is built or fetched.
    with ExitStack() as opened:
        source = spec.train_loader.build(context)
        opened.callback(source.close)
        evaluators = tuple(_evaluators(spec, context, plan))
        for evaluator in evaluators:
            opened.callback(evaluator.source.close)
        core, objective = _model(spec, runtime, len(tokenizer), choices)
        if core.model.encoder_decoder is not spec.model.encoder_decoder():
            raise PluginError(
                f"model {spec.model.kind!r}: spec and model disagree on encoder_decoder"
            )
        groups = param_groups(core.model.named_parameters(), spec.optimizer)
        optimizer = spec.optimizer.build(groups)
        length = _run_length(spec, source.batches_per_epoch())
        schedule = spec.scheduler.build(length)
        opened.pop_all()
    return Assembly(
        spec=spec,
        runtime=runtime,
        tokenizer=tokenizer,
        core=core,
        objective=objective,
        parameters=[p for group in optimizer.param_groups for p in group["params"]],
        optimizer=optimizer,
        schedule=schedule,
        plan=plan,
        microbatching=Microbatching(
            plan.microbatch,
            auto=spec.device_train_microbatch_size == "auto",
            objective=objective,
        ),
        source=source,
        evaluators=evaluators,
        state=TrainState(),
        total_steps=length.steps,
        choices=choices,
    )


def _model(
    spec: RunSpec, runtime: Runtime, vocabulary: int, choices: dict[str, str]
) -> tuple[Objective, nn.Module]:
    """Return model and loss as built, and as sharded or replicated; values initialised."""
    spec.model.check_device(runtime.device.type)
    described = spec.model.for_vocabulary(vocabulary)
    model = described.build(device="meta" if runtime.sharded else str(runtime.device))
    _check_fit(spec, model, vocabulary)
    choices.update(model.choices())
    weights = choose_weights(spec, runtime, choices)
    if weights == "bf16":
        model.to(torch.bfloat16)
    if spec.precision == "amp_fp8":
        choices["fp8_config"] = convert_blocks(
            model, spec.fp8_config or Float8Spec(), runtime.device
        )
    core = Objective(model, _loss(spec, model, runtime, choices).build())
    checkpoint_activations(model, spec.fsdp_config)
    _compile(spec.compile_config, model, runtime, choices)
    objective = runtime.prepare(core, model.blocks())
    if runtime.sharded:
        on_host = spec.fsdp_config is not None and spec.fsdp_config.cpu_offload
        objective.to_empty(device="cpu" if on_host else runtime.device)
    model.init_weights(spec.seed)
    if weights == "bf16_fp32_masters":
        runtime.weights = ComputeWeights(objective, torch.bfloat16)
    if spec.fsdp_config is not None:
        choices["fsdp_config"] = (
            f"{spec.fsdp_config.sharding_strategy} over {runtime.world_size} ranks"
            if runtime.sharded
            else "not sharded: one process"
            if runtime.world_size == 1
            else "replicated"
        )
    return core, objective


def choose_weights(spec: RunSpec, runtime: Runtime, choices: dict[str, str]) -> Weights:
    """Return what ``weights`` comes to here.

    Raises:
        SpecError: it was asked for what several devices do in another way.
    """
    if spec.weights == "auto":
        alone = runtime.device.type == "cuda" and runtime.world_size == 1
        if not alone or spec.precision not in HALF_WEIGHTS:
            return "fp32"
        choices["weights"] = "bf16_fp32_masters: one GPU, 16-bit precision"
        return "bf16_fp32_masters"
    if spec.weights != "fp32" and runtime.world_size > 1:
        raise SpecError(
            f"weights: {spec.weights} is for one device, here are {runtime.world_size}; with "
            "fsdp_config (mixed_precision: DEFAULT) ranks hold float32 shards and compute in "
            "16 bits, which is the same"
        )
    return spec.weights


def _check_fit(spec: RunSpec, model: LanguageModel, vocabulary: int) -> None:
    if vocabulary > model.vocab_size:
        raise SpecError(
            f"model.vocab_size: {model.vocab_size} is smaller than the tokenizer's {vocabulary} "
            "tokens; make it at least that (a pretrained model: resize_embeddings: true)"
        )
    longest = model.max_sequence_length()
    if longest is not None and spec.max_seq_len > longest:
        raise SpecError(
            f"max_seq_len: {spec.max_seq_len} is longer than the {longest} positions of the model"
        )


def _loss(
    spec: RunSpec, model: LanguageModel, runtime: Runtime, choices: dict[str, str]
) -> LossSpec:
    if spec.loss is not None:
        return spec.loss
    if runtime.device.type != "cuda":
        choices["loss"] = "torch_crossentropy, on a CPU"
        return CrossEntropySpec()
    if model.head_weight() is None:
        choices["loss"] = "torch_crossentropy: the model has no plain head to fuse"
        return CrossEntropySpec()
    choices["loss"] = "fused_crossentropy"
    return FusedCrossEntropySpec()


def _compile(
    config: CompileSpec | None, model: LanguageModel, runtime: Runtime, choices: dict[str, str]
) -> None:
    """Compile block by block: as fast as the whole model, and its first step takes seconds."""
    if config is None:
        if runtime.device.type != "cuda" or not model.blocks():
            return
        config = CompileSpec()
        choices["compile_config"] = "each block compiled (mode: default)"
    if not config.enabled:
        return
    for block in model.blocks():
        block.compile(mode=config.mode, dynamic=config.dynamic, fullgraph=config.fullgraph)


def _run_length(spec: RunSpec, steps_per_epoch: int | None) -> RunLength:
    tokens = spec.global_train_batch_size * spec.max_seq_len
    steps = None
    if spec.max_duration.unit is not TimeUnit.SECOND:
        steps = steps_of(
            spec.max_duration,
            steps_per_epoch=steps_per_epoch,
            samples=spec.global_train_batch_size,
            tokens=tokens,
        )
    return RunLength(
        max_duration=spec.max_duration,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        samples_per_step=spec.global_train_batch_size,
        tokens_per_step=tokens,
    )


def _evaluators(spec: RunSpec, context: LoaderContext, plan: BatchPlan) -> list[Evaluator]:
    size = spec.device_eval_batch_size or plan.microbatch
    evaluators = []
    for entry in spec.eval_loader:
        own = attrs.evolve(context, device_batch=size, training=False)
        evaluators.append(
            Evaluator(
                label="eval" if entry.label is None else f"eval/{entry.label}",
                source=entry.loader.build(own),
                microbatch=size,
                batches=None if spec.eval_subset_num_batches < 0 else spec.eval_subset_num_batches,
            )
        )
    return evaluators
