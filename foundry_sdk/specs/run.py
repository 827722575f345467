"""The specs of a run: what a YAML file or a few lines of Python say."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import attrs
from attrs import validators

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.data.contract import DataSpec, TokenizerSpec
from foundry_sdk.loggers.contract import LoggerSpec
from foundry_sdk.losses.contract import LossSpec
from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.optim.contract import OptimizerSpec, SchedulerSpec
from foundry_sdk.specs import checks
from foundry_sdk.specs.places import raise_problems
from foundry_sdk.units import Duration

if TYPE_CHECKING:
    from foundry_sdk.plugin.catalog import Catalog

R = TypeVar("R", bound="RunSpec")
FINETUNING: Final = "finetuning"
"""The kind of loader that makes a run a finetuning one."""
Precision = Literal["fp32", "amp_bf16", "amp_fp16", "amp_fp8"]
Weights = Literal["auto", "fp32", "bf16_fp32_masters", "bf16"]
MixedPrecision = Literal["PURE", "DEFAULT", "FULL"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
ShardingStrategy = Literal["FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "NO_SHARD"]


@attrs.frozen(kw_only=True)
class GradientClippingSpec:
    """``algorithms.gradient_clipping``: norm, value, or adaptive (unit-wise, AGC)."""

    clipping_type: Literal["norm", "value", "adaptive"] = "norm"
    clipping_threshold: float = attrs.field(default=1.0, validator=validators.gt(0))


@attrs.frozen(kw_only=True)
class AlgorithmsSpec:
    """``algorithms:`` of a run."""

    gradient_clipping: GradientClippingSpec | None = None


@attrs.frozen(kw_only=True)
class FSDPSpec:
    """``fsdp_config:`` with the reference's names.

    Attributes:
        activation_checkpointing_policy: what is made again in the backward pass: ``full``,
            everything within a block; ``selective``, all but the outputs of its linear layers,
            which takes more memory and less time.
    """

    sharding_strategy: ShardingStrategy = "FULL_SHARD"
    mixed_precision: MixedPrecision = "DEFAULT"
    activation_checkpointing: bool = False
    activation_checkpointing_policy: Literal["full", "selective"] = "full"
    activation_checkpointing_reentrant: bool = False
    activation_cpu_offload: bool = False
    cpu_offload: bool = False
    state_dict_type: Literal["full", "sharded"] = "sharded"


@attrs.frozen(kw_only=True)
class CompileSpec:
    """``compile_config:`` (torch.compile, block by block)."""

    enabled: bool = True
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        "default"
    )
    dynamic: bool | None = None
    fullgraph: bool = False


@attrs.frozen(kw_only=True)
class Float8Spec:
    """``fp8_config:`` of ``precision: amp_fp8``.

    Attributes:
        recipe: one scale for each tensor, or for each row (more exact, and slower).
        minimum_size: layers with a dimension below this are left in bfloat16, where quantising
            costs more time than the faster product saves.
    """

    recipe: Literal["tensorwise", "rowwise"] = "tensorwise"
    minimum_size: int = attrs.field(default=1024, validator=validators.ge(16))


@attrs.frozen(kw_only=True)
class EvalLoader:
    """One entry of ``eval_loader``: a loader with the label its metrics carry."""

    loader: DataSpec
    label: str | None = None


def _duration(given: str | int | Duration) -> Duration:
    return Duration.parse(given)


def _eval_loaders(
    given: "DataSpec | EvalLoader | Iterable[DataSpec | EvalLoader] | None",
) -> tuple[EvalLoader, ...]:
    if given is None:
        return ()
    entries = (given,) if isinstance(given, DataSpec | EvalLoader) else given
    return tuple(e if isinstance(e, EvalLoader) else EvalLoader(loader=e) for e in entries)


def _callbacks(given: Iterable[CallbackSpec]) -> tuple[CallbackSpec, ...]:
    return tuple(given)


def _loggers(given: Iterable[LoggerSpec]) -> tuple[LoggerSpec, ...]:
    return tuple(given)


@attrs.frozen(kw_only=True)
class RunSpec:
    """What every run has. Names and defaults are LLM Foundry's unless a doc says otherwise.

    Durations may be given as text (``"100ba"``, ``"1ep"``) or as an int, which counts epochs.

    Attributes:
        model: what is trained.
        tokenizer: which tokenizer the data is for.
        optimizer: with its peak learning rate.
        scheduler: how the learning rate goes from there.
        train_loader: what is trained on.
        max_duration: when the run ends.
        max_seq_len: tokens of a sequence.
        global_train_batch_size: sequences of an optimizer step, over all devices.
        eval_loader: what is evaluated on; several have a label each.
        loss: None = fused_crossentropy where the device and the model allow it, else
            torch_crossentropy.
        device_train_microbatch_size: sequences of one forward; ``auto`` finds the fastest that
            fits (the largest with ``deterministic``, as times vary).
        device_eval_batch_size: sequences of one forward in evaluation; None = the microbatch.
        seed: of initial values, data order and dropout; 0 to 2**32 - 2.
        precision: of forward and backward; ``amp_fp8`` computes the products of the blocks'
            linear layers in float8 and all else as ``amp_bf16``.
        weights: what the parameters are. ``fp32``: float32, rounded in each forward where the
            precision says so. ``bf16_fp32_masters``: bfloat16 in forward and backward, with a
            float32 master that the optimizer updates. ``bf16``: bfloat16 alone, half the memory.
            ``auto``: masters on one GPU with 16-bit precision, else float32.
        fp8_config: of ``precision: amp_fp8``.
        deterministic: the same bits from run to run, also on a GPU; slower.
        fsdp_config: None = every rank holds the whole model.
        compile_config: None = no torch.compile.
        algorithms: gradient clipping.
        callbacks: what watches the run, in this order.
        loggers: where metrics go besides metrics.jsonl.
        eval_interval: between evaluations; one is also made at the end.
        eval_first: evaluate before the first step.
        eval_subset_num_batches: batches of each evaluation; -1 = all.
        run_name: name of the run's folder.
        run_root: where runs are kept.
        save_folder: where checkpoints go: a folder, or a URI such as ``s3://bucket/prefix``.
        save_interval: between checkpoints; one is also made at the end.
        save_num_checkpoints_to_keep: the newest that are kept; -1 = all.
        save_overwrite: start anew where there are checkpoints; later ones are deleted.
        save_weights_only: leave out optimizer, data position and random state.
        autoresume: go on from the newest whole checkpoint of the run, if there is one.
        load_path: a checkpoint to begin from: a folder, or a URI.
        load_weights_only: take only its weights.
        load_strict_model_weights: names and shapes must match exactly.
        progress_bar: show one where the output is a terminal.
        log_to_console: print metrics.
        console_log_interval: between printed metrics.
        log_config: print the resolved spec at the start.
        python_log_level: of the SDK's own log.
        dist_timeout: seconds that a rank waits for the others.
        metadata: kept with the run's record.
    """

    model: ModelSpec
    tokenizer: TokenizerSpec
    optimizer: OptimizerSpec
    scheduler: SchedulerSpec
    train_loader: DataSpec
    max_duration: Duration = attrs.field(converter=_duration)
    max_seq_len: int = attrs.field(validator=validators.gt(0))
    global_train_batch_size: int = attrs.field(validator=validators.gt(0))
    eval_loader: tuple[EvalLoader, ...] = attrs.field(default=(), converter=_eval_loaders)
    loss: LossSpec | None = None
    device_train_microbatch_size: int | Literal["auto"] = "auto"
    device_eval_batch_size: int | None = None
    seed: int = 17
    precision: Precision = "amp_bf16"
    weights: Weights = "auto"
    fp8_config: Float8Spec | None = None
    deterministic: bool = False
    fsdp_config: FSDPSpec | None = None
    compile_config: CompileSpec | None = None
    algorithms: AlgorithmsSpec = attrs.field(factory=AlgorithmsSpec)
    callbacks: tuple[CallbackSpec, ...] = attrs.field(default=(), converter=_callbacks)
    loggers: tuple[LoggerSpec, ...] = attrs.field(default=(), converter=_loggers)
    eval_interval: Duration = attrs.field(default=Duration.parse("1ep"), converter=_duration)
    eval_first: bool = False
    eval_subset_num_batches: int = -1
    run_name: str | None = None
    run_root: str = "runs"
    save_folder: str | None = None
    save_interval: Duration = attrs.field(default=Duration.parse("1000ba"), converter=_duration)
    save_num_checkpoints_to_keep: int = -1
    save_overwrite: bool = False
    save_weights_only: bool = False
    autoresume: bool = False
    load_path: str | None = None
    load_weights_only: bool = False
    load_strict_model_weights: bool = True
    progress_bar: bool = True
    log_to_console: bool = True
    console_log_interval: Duration = attrs.field(default=Duration.parse("1ba"), converter=_duration)
    log_config: bool = False
    python_log_level: LogLevel = "info"
    dist_timeout: float = 600.0
    metadata: Mapping[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        """Check what must hold between fields.

        Raises:
            SpecError: one line per problem.
        """
        raise_problems(checks.problems(self._fields()))

    @classmethod
    def from_yaml(
        cls: type[R],
        path: str | Path,
        overrides: Sequence[str] = (),
        *,
        catalog: "Catalog | None" = None,
    ) -> R:
        """Read a spec file, with ``a.b.c=value`` overrides.

        Args:
            path: a YAML file with LLM Foundry's key names.
            overrides: applied like lines of the file.
            catalog: what the file may name; None = the built-ins and the installed plugins.

        Raises:
            SpecError: one line per mistake of the file.
            PluginError: the installed plugins cannot be used together.
        """
        from foundry_sdk.specs.structure import read

        return read(path, cls, overrides, catalog=catalog)[0]

    def notices(self) -> tuple[str, ...]:
        """Return what of this spec has no effect or is replaced, one line each."""
        return tuple(checks.notes(self._fields()))

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}


@attrs.frozen(kw_only=True)
class PretrainSpec(RunSpec):
    """A pretraining run."""


@attrs.frozen(kw_only=True)
class FinetuneSpec(RunSpec):
    """A run on prompts and responses, or chats: ``train_loader`` is a ``finetuning`` loader."""

    def __attrs_post_init__(self) -> None:
        """Check what must hold between fields.

        Raises:
            SpecError: one line per problem.
        """
        RunSpec.__attrs_post_init__(self)
        kind = self.train_loader.kind
        if kind != FINETUNING:
            raise_problems(
                [
                    (
                        ("train_loader", "name"),
                        f"{kind!r} is not for finetuning on examples; use {FINETUNING!r}, or a "
                        "PretrainSpec (Pretrainer) for text",
                    )
                ]
            )
