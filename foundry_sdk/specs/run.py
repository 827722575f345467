"""The specs of a run: what a YAML file or a few lines of Python say."""

from collections.abc import Mapping
from typing import Any, Literal

import attrs
from attrs import validators

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.data.contract import DataSpec, TokenizerSpec
from foundry_sdk.loggers.contract import LoggerSpec
from foundry_sdk.losses.contract import LossSpec
from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.optim.contract import OptimizerSpec, SchedulerSpec
from foundry_sdk.units import Duration

Precision = Literal["fp32", "amp_bf16", "amp_fp16"]
MixedPrecision = Literal["PURE", "DEFAULT", "FULL"]
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
    """``fsdp_config:`` with the reference's names."""

    sharding_strategy: ShardingStrategy = "FULL_SHARD"
    mixed_precision: MixedPrecision = "DEFAULT"
    activation_checkpointing: bool = False
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
class EvalLoader:
    """One entry of ``eval_loader``: a loader with the label its metrics carry."""

    loader: DataSpec
    label: str | None = None


@attrs.frozen(kw_only=True)
class RunSpec:
    """What every run has. Names and defaults are LLM Foundry's unless a doc says otherwise."""

    model: ModelSpec
    tokenizer: TokenizerSpec
    optimizer: OptimizerSpec
    scheduler: SchedulerSpec
    train_loader: DataSpec
    max_duration: Duration
    max_seq_len: int = attrs.field(validator=validators.gt(0))
    global_train_batch_size: int = attrs.field(validator=validators.gt(0))
    eval_loader: tuple[EvalLoader, ...] = ()
    loss: LossSpec | None = None
    device_train_microbatch_size: int | Literal["auto"] = "auto"
    device_eval_batch_size: int | None = None
    seed: int = 17
    precision: Precision = "amp_bf16"
    deterministic: bool = False
    fsdp_config: FSDPSpec | None = None
    compile_config: CompileSpec | None = None
    algorithms: AlgorithmsSpec = attrs.field(factory=AlgorithmsSpec)
    callbacks: tuple[CallbackSpec, ...] = ()
    loggers: tuple[LoggerSpec, ...] = ()
    eval_interval: Duration = attrs.field(factory=lambda: Duration.parse("1ep"))
    eval_first: bool = False
    eval_subset_num_batches: int = -1
    train_subset_num_batches: int = -1
    run_name: str | None = None
    run_root: str = "runs"
    save_folder: str | None = None
    save_interval: Duration = attrs.field(factory=lambda: Duration.parse("1000ba"))
    save_num_checkpoints_to_keep: int = -1
    save_overwrite: bool = False
    save_weights_only: bool = False
    autoresume: bool = False
    load_path: str | None = None
    load_weights_only: bool = False
    load_strict_model_weights: bool = True
    progress_bar: bool = True
    log_to_console: bool = True
    console_log_interval: Duration = attrs.field(factory=lambda: Duration.parse("1ba"))
    log_config: bool = False
    python_log_level: str = "info"
    dist_timeout: float = 600.0
    metadata: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class PretrainSpec(RunSpec):
    """A pretraining run."""
