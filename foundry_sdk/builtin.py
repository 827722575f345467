"""The components that ship with the SDK, offered through the same hook as everyone's."""

from collections.abc import Iterable

from foundry_sdk.component import ComponentSpec
from foundry_sdk.data.text import TextDataSpec
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.losses.specs import CrossEntropySpec, FusedCrossEntropySpec
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
        TextDataSpec,
        FusedCrossEntropySpec,
        CrossEntropySpec,
        MPTSpec,
        DecoupledAdaLRLionSpec,
        AdamWSpec,
        DecoupledClipLionSpec,
        DecoupledAdamWSpec,
        DecoupledLionWSpec,
        NoOpSpec,
        ConstantWithWarmupSpec,
        CosineWithWarmupSpec,
        InverseSqrtWithWarmupSpec,
        LinearDecayWithWarmupSpec,
        WarmupStableDecaySpec,
    ]
