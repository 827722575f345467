"""The components that ship with the SDK, offered through the same hook as everyone's."""

from collections.abc import Iterable

from foundry_sdk.callbacks.garbage import ScheduledGCSpec
from foundry_sdk.callbacks.generation import GenerateCallbackSpec
from foundry_sdk.callbacks.guards import LossSpikeGuardSpec, NaNMonitorSpec
from foundry_sdk.callbacks.ledger import SampleLedgerSpec
from foundry_sdk.callbacks.lr import LRMonitorSpec
from foundry_sdk.callbacks.memory import MemoryMonitorSpec
from foundry_sdk.callbacks.optimizer_norms import OptimizerMonitorSpec
from foundry_sdk.callbacks.remaining import RuntimeEstimatorSpec
from foundry_sdk.callbacks.speed import SpeedMonitorSpec
from foundry_sdk.callbacks.stopping import EarlyStopperSpec
from foundry_sdk.callbacks.timeout import RunTimeoutSpec
from foundry_sdk.component import ComponentSpec
from foundry_sdk.data.finetuning.spec import FinetuningDataSpec
from foundry_sdk.data.preprocessors import (
    alpaca,
    dolly,
    flan,
    muennighoff_p3,
    multiple_choice,
    numina_math,
    open_hermes,
    p3,
    stack_math_qa,
)
from foundry_sdk.data.text import TextDataSpec
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.loggers.memory import InMemorySpec
from foundry_sdk.loggers.services import (
    CometMLSpec,
    CometSpec,
    MLflowSpec,
    TensorBoardSpec,
    WandBSpec,
)
from foundry_sdk.losses.specs import CrossEntropySpec, FusedCrossEntropySpec
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec, HFSeq2SeqSpec
from foundry_sdk.models.mpt.spec import MPTSpec
from foundry_sdk.optim.schedules import (
    ConstantWithWarmupSpec,
    CosineWithWarmupSpec,
    InverseSqrtWithWarmupSpec,
    LinearDecayWithWarmupSpec,
    WarmupStableDecaySpec,
)
from foundry_sdk.optim.specs import (
    AdamWSpec,
    DecoupledAdaLRLionSpec,
    DecoupledAdamWSpec,
    DecoupledClipLionSpec,
    DecoupledLionWSpec,
    NoOpSpec,
)


@hookimpl
def foundry_components() -> Iterable[type[ComponentSpec]]:
    """Offer the built-in components, sorted by family and kind."""
    return [
        EarlyStopperSpec,
        GenerateCallbackSpec,
        LossSpikeGuardSpec,
        LRMonitorSpec,
        MemoryMonitorSpec,
        NaNMonitorSpec,
        OptimizerMonitorSpec,
        RunTimeoutSpec,
        RuntimeEstimatorSpec,
        SampleLedgerSpec,
        ScheduledGCSpec,
        SpeedMonitorSpec,
        FinetuningDataSpec,
        TextDataSpec,
        CometSpec,
        CometMLSpec,
        InMemorySpec,
        MLflowSpec,
        TensorBoardSpec,
        WandBSpec,
        FusedCrossEntropySpec,
        CrossEntropySpec,
        HFCausalLMSpec,
        HFSeq2SeqSpec,
        MPTSpec,
        DecoupledAdaLRLionSpec,
        AdamWSpec,
        DecoupledClipLionSpec,
        DecoupledAdamWSpec,
        DecoupledLionWSpec,
        NoOpSpec,
        numina_math,
        dolly,
        flan,
        muennighoff_p3,
        p3,
        stack_math_qa,
        multiple_choice,
        alpaca,
        open_hermes,
        ConstantWithWarmupSpec,
        CosineWithWarmupSpec,
        InverseSqrtWithWarmupSpec,
        LinearDecayWithWarmupSpec,
        WarmupStableDecaySpec,
    ]
