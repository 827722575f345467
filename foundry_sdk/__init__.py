"""Pretrain and finetune language models from typed specs and plugins.

The public names are found when they are first used, so that importing this package is quick.
"""

import os
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

# Read where the libraries are imported that would else report how they are used.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from foundry_sdk.batch import IGNORE_INDEX as IGNORE_INDEX
    from foundry_sdk.batch import Batch as Batch
    from foundry_sdk.batch import LossOutput as LossOutput
    from foundry_sdk.callbacks.contract import CallbackSpec as CallbackSpec
    from foundry_sdk.callbacks.garbage import ScheduledGCSpec as ScheduledGCSpec
    from foundry_sdk.callbacks.generation import GenerateCallbackSpec as GenerateCallbackSpec
    from foundry_sdk.callbacks.guards import LossSpikeGuardSpec as LossSpikeGuardSpec
    from foundry_sdk.callbacks.guards import NaNMonitorSpec as NaNMonitorSpec
    from foundry_sdk.callbacks.ledger import SampleLedgerSpec as SampleLedgerSpec
    from foundry_sdk.callbacks.lr import LRMonitorSpec as LRMonitorSpec
    from foundry_sdk.callbacks.memory import MemoryMonitorSpec as MemoryMonitorSpec
    from foundry_sdk.callbacks.optimizer_norms import OptimizerMonitorSpec as OptimizerMonitorSpec
    from foundry_sdk.callbacks.remaining import RuntimeEstimatorSpec as RuntimeEstimatorSpec
    from foundry_sdk.callbacks.speed import SpeedMonitorSpec as SpeedMonitorSpec
    from foundry_sdk.callbacks.stopping import EarlyStopperSpec as EarlyStopperSpec
    from foundry_sdk.callbacks.timeout import RunTimeoutSpec as RunTimeoutSpec
    from foundry_sdk.component import ComponentSpec as ComponentSpec
    from foundry_sdk.data.contract import BatchSource as BatchSource
    from foundry_sdk.data.contract import ChatExample as ChatExample
    from foundry_sdk.data.contract import DataSpec as DataSpec
    from foundry_sdk.data.contract import LoaderContext as LoaderContext
    from foundry_sdk.data.contract import PreprocessorSpec as PreprocessorSpec
    from foundry_sdk.data.contract import PromptResponse as PromptResponse
    from foundry_sdk.data.contract import TokenizerSpec as TokenizerSpec
    from foundry_sdk.data.finetuning.spec import FinetuningDatasetSpec as FinetuningDatasetSpec
    from foundry_sdk.data.finetuning.spec import FinetuningDataSpec as FinetuningDataSpec
    from foundry_sdk.data.finetuning.spec import WeightedSourceSpec as WeightedSourceSpec
    from foundry_sdk.data.preprocess import preprocessor as preprocessor
    from foundry_sdk.data.streams import StreamSpec as StreamSpec
    from foundry_sdk.data.text import TextDatasetSpec as TextDatasetSpec
    from foundry_sdk.data.text import TextDataSpec as TextDataSpec
    from foundry_sdk.errors import CheckpointError as CheckpointError
    from foundry_sdk.errors import CheckpointWriteError as CheckpointWriteError
    from foundry_sdk.errors import DataError as DataError
    from foundry_sdk.errors import DeviceMemoryError as DeviceMemoryError
    from foundry_sdk.errors import ExportError as ExportError
    from foundry_sdk.errors import FoundryError as FoundryError
    from foundry_sdk.errors import LaunchError as LaunchError
    from foundry_sdk.errors import LockedRunError as LockedRunError
    from foundry_sdk.errors import NonFiniteError as NonFiniteError
    from foundry_sdk.errors import NoSpaceError as NoSpaceError
    from foundry_sdk.errors import PluginError as PluginError
    from foundry_sdk.errors import RunError as RunError
    from foundry_sdk.errors import SpecError as SpecError
    from foundry_sdk.errors import UnknownComponentError as UnknownComponentError
    from foundry_sdk.errors import WorkerFailedError as WorkerFailedError
    from foundry_sdk.finetuner import Finetuner as Finetuner
    from foundry_sdk.hookspecs import hookimpl as hookimpl
    from foundry_sdk.loggers.contract import LoggerSpec as LoggerSpec
    from foundry_sdk.loggers.memory import InMemorySpec as InMemorySpec
    from foundry_sdk.loggers.services import CometSpec as CometSpec
    from foundry_sdk.loggers.services import MLflowSpec as MLflowSpec
    from foundry_sdk.loggers.services import TensorBoardSpec as TensorBoardSpec
    from foundry_sdk.loggers.services import WandBSpec as WandBSpec
    from foundry_sdk.losses.contract import LossSpec as LossSpec
    from foundry_sdk.losses.module import HeadLoss as HeadLoss
    from foundry_sdk.losses.module import LogitsLoss as LogitsLoss
    from foundry_sdk.losses.specs import CrossEntropySpec as CrossEntropySpec
    from foundry_sdk.losses.specs import FusedCrossEntropySpec as FusedCrossEntropySpec
    from foundry_sdk.models.contract import ModelSpec as ModelSpec
    from foundry_sdk.models.huggingface.spec import HFCausalLMSpec as HFCausalLMSpec
    from foundry_sdk.models.huggingface.spec import HFSeq2SeqSpec as HFSeq2SeqSpec
    from foundry_sdk.models.language_model import LanguageModel as LanguageModel
    from foundry_sdk.models.mpt.options import AttentionSpec as AttentionSpec
    from foundry_sdk.models.mpt.options import FFNSpec as FFNSpec
    from foundry_sdk.models.mpt.options import InitSpec as InitSpec
    from foundry_sdk.models.mpt.options import RopeDailSpec as RopeDailSpec
    from foundry_sdk.models.mpt.options import RopeHFSpec as RopeHFSpec
    from foundry_sdk.models.mpt.spec import MPTSpec as MPTSpec
    from foundry_sdk.optim.contract import OptimizerSpec as OptimizerSpec
    from foundry_sdk.optim.contract import ParamGroups as ParamGroups
    from foundry_sdk.optim.contract import Progress as Progress
    from foundry_sdk.optim.contract import RunLength as RunLength
    from foundry_sdk.optim.contract import Schedule as Schedule
    from foundry_sdk.optim.contract import SchedulerSpec as SchedulerSpec
    from foundry_sdk.optim.schedules import ConstantWithWarmupSpec as ConstantWithWarmupSpec
    from foundry_sdk.optim.schedules import CosineWithWarmupSpec as CosineWithWarmupSpec
    from foundry_sdk.optim.schedules import InverseSqrtWithWarmupSpec as InverseSqrtWithWarmupSpec
    from foundry_sdk.optim.schedules import LinearDecayWithWarmupSpec as LinearDecayWithWarmupSpec
    from foundry_sdk.optim.schedules import WarmupStableDecaySpec as WarmupStableDecaySpec
    from foundry_sdk.optim.specs import AdamWSpec as AdamWSpec
    from foundry_sdk.optim.specs import DecoupledAdaLRLionSpec as DecoupledAdaLRLionSpec
    from foundry_sdk.optim.specs import DecoupledAdamWSpec as DecoupledAdamWSpec
    from foundry_sdk.optim.specs import DecoupledClipLionSpec as DecoupledClipLionSpec
    from foundry_sdk.optim.specs import DecoupledLionWSpec as DecoupledLionWSpec
    from foundry_sdk.optim.specs import NoOpSpec as NoOpSpec
    from foundry_sdk.plugin.catalog import Catalog as Catalog
    from foundry_sdk.plugin.host import PluginHost as PluginHost
    from foundry_sdk.pretrainer import Pretrainer as Pretrainer
    from foundry_sdk.specs.run import AlgorithmsSpec as AlgorithmsSpec
    from foundry_sdk.specs.run import CompileSpec as CompileSpec
    from foundry_sdk.specs.run import EvalLoader as EvalLoader
    from foundry_sdk.specs.run import FinetuneSpec as FinetuneSpec
    from foundry_sdk.specs.run import FSDPSpec as FSDPSpec
    from foundry_sdk.specs.run import GradientClippingSpec as GradientClippingSpec
    from foundry_sdk.specs.run import PretrainSpec as PretrainSpec
    from foundry_sdk.training.run import RunResult as RunResult
    from foundry_sdk.units import Duration as Duration
    from foundry_sdk.units import TimeUnit as TimeUnit

__version__: Final = "0.1.0"

_HOMES: Final = MappingProxyType(
    {
        "foundry_sdk.batch": (
            "Batch",
            "IGNORE_INDEX",
            "LossOutput",
        ),
        "foundry_sdk.callbacks.contract": ("CallbackSpec",),
        "foundry_sdk.callbacks.garbage": ("ScheduledGCSpec",),
        "foundry_sdk.callbacks.generation": ("GenerateCallbackSpec",),
        "foundry_sdk.callbacks.guards": (
            "LossSpikeGuardSpec",
            "NaNMonitorSpec",
        ),
        "foundry_sdk.callbacks.ledger": ("SampleLedgerSpec",),
        "foundry_sdk.callbacks.lr": ("LRMonitorSpec",),
        "foundry_sdk.callbacks.memory": ("MemoryMonitorSpec",),
        "foundry_sdk.callbacks.optimizer_norms": ("OptimizerMonitorSpec",),
        "foundry_sdk.callbacks.remaining": ("RuntimeEstimatorSpec",),
        "foundry_sdk.callbacks.speed": ("SpeedMonitorSpec",),
        "foundry_sdk.callbacks.stopping": ("EarlyStopperSpec",),
        "foundry_sdk.callbacks.timeout": ("RunTimeoutSpec",),
        "foundry_sdk.component": ("ComponentSpec",),
        "foundry_sdk.data.contract": (
            "BatchSource",
            "ChatExample",
            "DataSpec",
            "LoaderContext",
            "PreprocessorSpec",
            "PromptResponse",
            "TokenizerSpec",
        ),
        "foundry_sdk.data.finetuning.spec": (
            "FinetuningDataSpec",
            "FinetuningDatasetSpec",
            "WeightedSourceSpec",
        ),
        "foundry_sdk.data.preprocess": ("preprocessor",),
        "foundry_sdk.data.streams": ("StreamSpec",),
        "foundry_sdk.data.text": (
            "TextDataSpec",
            "TextDatasetSpec",
        ),
        "foundry_sdk.errors": (
            "CheckpointError",
            "CheckpointWriteError",
            "DataError",
            "DeviceMemoryError",
            "ExportError",
            "FoundryError",
            "LaunchError",
            "LockedRunError",
            "NoSpaceError",
            "NonFiniteError",
            "PluginError",
            "RunError",
            "SpecError",
            "UnknownComponentError",
            "WorkerFailedError",
        ),
        "foundry_sdk.finetuner": ("Finetuner",),
        "foundry_sdk.hookspecs": ("hookimpl",),
        "foundry_sdk.loggers.contract": ("LoggerSpec",),
        "foundry_sdk.loggers.memory": ("InMemorySpec",),
        "foundry_sdk.loggers.services": (
            "CometSpec",
            "MLflowSpec",
            "TensorBoardSpec",
            "WandBSpec",
        ),
        "foundry_sdk.losses.contract": ("LossSpec",),
        "foundry_sdk.losses.module": (
            "HeadLoss",
            "LogitsLoss",
        ),
        "foundry_sdk.losses.specs": (
            "CrossEntropySpec",
            "FusedCrossEntropySpec",
        ),
        "foundry_sdk.models.contract": ("ModelSpec",),
        "foundry_sdk.models.language_model": ("LanguageModel",),
        "foundry_sdk.models.mpt.options": (
            "AttentionSpec",
            "FFNSpec",
            "InitSpec",
            "RopeDailSpec",
            "RopeHFSpec",
        ),
        "foundry_sdk.models.huggingface.spec": ("HFCausalLMSpec", "HFSeq2SeqSpec"),
        "foundry_sdk.models.mpt.spec": ("MPTSpec",),
        "foundry_sdk.optim.contract": (
            "OptimizerSpec",
            "ParamGroups",
            "Progress",
            "RunLength",
            "Schedule",
            "SchedulerSpec",
        ),
        "foundry_sdk.optim.schedules": (
            "ConstantWithWarmupSpec",
            "CosineWithWarmupSpec",
            "InverseSqrtWithWarmupSpec",
            "LinearDecayWithWarmupSpec",
            "WarmupStableDecaySpec",
        ),
        "foundry_sdk.optim.specs": (
            "AdamWSpec",
            "DecoupledAdaLRLionSpec",
            "DecoupledAdamWSpec",
            "DecoupledClipLionSpec",
            "DecoupledLionWSpec",
            "NoOpSpec",
        ),
        "foundry_sdk.plugin.catalog": ("Catalog",),
        "foundry_sdk.plugin.host": ("PluginHost",),
        "foundry_sdk.pretrainer": ("Pretrainer",),
        "foundry_sdk.specs.run": (
            "AlgorithmsSpec",
            "CompileSpec",
            "EvalLoader",
            "FSDPSpec",
            "FinetuneSpec",
            "GradientClippingSpec",
            "PretrainSpec",
        ),
        "foundry_sdk.training.run": ("RunResult",),
        "foundry_sdk.units": (
            "Duration",
            "TimeUnit",
        ),
    }
)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562: the type checker reads the imports
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", *(name for names in _HOMES.values() for name in names)])
