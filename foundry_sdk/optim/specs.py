"""The specs of the optimizers; building one loads torch."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs

from foundry_sdk.optim.contract import OptimizerSpec, ParamGroups

if TYPE_CHECKING:
    import torch


def _pair(betas: Sequence[float]) -> tuple[float, ...]:
    return tuple(betas)


def _positive(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{attribute.name} must be a finite number > 0, got {value!r}")


def _not_negative(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name} must be a finite number >= 0, got {value!r}")


def _decoupled_decay(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(
            f"{attribute.name} must be >= 0 and < 1, got {value!r}: this optimizer multiplies "
            "weights by 1 - weight_decay at peak learning rate, without the learning rate in it"
        )


def _betas(_: object, attribute: "attrs.Attribute[Any]", value: tuple[float, ...]) -> None:
    if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
        raise ValueError(f"{attribute.name} must be two numbers in [0, 1), got {value!r}")


def _share(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{attribute.name} must be > 0 and <= 1, got {value!r}")


@attrs.frozen(kw_only=True)
class AdamWSpec(OptimizerSpec):
    """AdamW as in torch: weight decay is multiplied by the learning rate."""

    kind = "adamw"
    lr: float = attrs.field(default=1e-3, validator=_not_negative)
    betas: tuple[float, float] = attrs.field(
        default=(0.9, 0.999), converter=_pair, validator=_betas
    )
    eps: float = attrs.field(default=1e-8, validator=_positive)
    weight_decay: float = attrs.field(default=1e-2, validator=_not_negative)
    amsgrad: bool = False

    def state_floats(self) -> int:
        """Return the numbers per parameter."""
        return 3 if self.amsgrad else 2

    def build(self, groups: ParamGroups) -> "torch.optim.Optimizer":
        """Return :class:`foundry_sdk.optim.AdamW`."""
        from foundry_sdk.optim.adamw import AdamW

        return AdamW(groups, self.lr, self.betas, self.eps, self.weight_decay, amsgrad=self.amsgrad)


@attrs.frozen(kw_only=True)
class DecoupledAdamWSpec(OptimizerSpec):
    """AdamW whose weight decay follows the schedule but is not multiplied by the learning rate."""

    kind = "decoupled_adamw"
    lr: float = attrs.field(default=1e-3, validator=_not_negative)
    betas: tuple[float, float] = attrs.field(default=(0.9, 0.95), converter=_pair, validator=_betas)
    eps: float = attrs.field(default=1e-8, validator=_positive)
    weight_decay: float = attrs.field(default=1e-5, validator=_decoupled_decay)
    amsgrad: bool = False

    def state_floats(self) -> int:
        """Return the numbers per parameter."""
        return 3 if self.amsgrad else 2

    def build(self, groups: ParamGroups) -> "torch.optim.Optimizer":
        """Return :class:`foundry_sdk.optim.DecoupledAdamW`."""
        from foundry_sdk.optim.adamw import DecoupledAdamW

        return DecoupledAdamW(
            groups, self.lr, self.betas, self.eps, self.weight_decay, amsgrad=self.amsgrad
        )


@attrs.frozen(kw_only=True)
class DecoupledLionWSpec(OptimizerSpec):
    """Lion, whose weight decay follows the schedule but is not multiplied by the learning rate.

    Attributes:
        momentum_dtype: float32 or bfloat16; None = that of the parameters.
        stochastic_rounding: round bfloat16 parameters up or down at random, so that small updates
            are not lost; for ``weights: bf16``.
    """

    kind = "decoupled_lionw"
    lr: float = attrs.field(default=1e-4, validator=_positive)
    betas: tuple[float, float] = attrs.field(default=(0.9, 0.99), converter=_pair, validator=_betas)
    weight_decay: float = attrs.field(default=0.0, validator=_decoupled_decay)
    momentum_dtype: Literal["float32", "bfloat16"] | None = None
    stochastic_rounding: bool = False

    def state_floats(self) -> int:
        """Return the numbers per parameter."""
        return 1

    def build(self, groups: ParamGroups) -> "torch.optim.Optimizer":
        """Return :class:`foundry_sdk.optim.DecoupledLionW`."""
        from foundry_sdk.optim.lionw import DecoupledLionW

        return DecoupledLionW(
            groups,
            self.lr,
            self.betas,
            self.weight_decay,
            momentum_dtype=self.momentum_dtype,
            stochastic_rounding=self.stochastic_rounding,
        )


@attrs.frozen(kw_only=True)
class DecoupledAdaLRLionSpec(OptimizerSpec):
    """Lion that lowers a parameter's learning rate for a while after its momentum leapt.

    Attributes:
        outlier_threshold: how many times its usual norm a momentum must have to be an outlier.
        timeout: for how many steps an outlier counts.
        lr_penalty: factor on the learning rate for each outlier that counts.
        min_scale: the smallest factor.
    """

    kind = "adalr_lion"
    lr: float = attrs.field(default=1e-4, validator=_positive)
    betas: tuple[float, float] = attrs.field(default=(0.9, 0.99), converter=_pair, validator=_betas)
    weight_decay: float = attrs.field(default=0.0, validator=_decoupled_decay)
    outlier_threshold: float = attrs.field(default=10.0, validator=_positive)
    timeout: int = attrs.field(default=100, validator=_positive)
    lr_penalty: float = attrs.field(default=0.707, validator=_share)
    min_scale: float = attrs.field(default=1e-4, validator=_share)

    def state_floats(self) -> int:
        """Return the numbers per parameter."""
        return 1

    def build(self, groups: ParamGroups) -> "torch.optim.Optimizer":
        """Return :class:`foundry_sdk.optim.DecoupledAdaLRLion`."""
        from foundry_sdk.optim.adaptive_lion import DecoupledAdaLRLion

        return DecoupledAdaLRLion(
            groups,
            self.lr,
            self.betas,
            self.weight_decay,
            outlier_threshold=self.outlier_threshold,
            timeout=self.timeout,
            lr_penalty=self.lr_penalty,
            min_scale=self.min_scale,
        )


@attrs.frozen(kw_only=True)
class DecoupledClipLionSpec(OptimizerSpec):
    """Lion that clips a parameter's gradient where its norm leapt.

    Attributes:
        outlier_threshold: how many times its usual norm a gradient may have.
    """

    kind = "clip_lion"
    lr: float = attrs.field(default=1e-4, validator=_positive)
    betas: tuple[float, float] = attrs.field(default=(0.9, 0.99), converter=_pair, validator=_betas)
    weight_decay: float = attrs.field(default=0.0, validator=_decoupled_decay)
    outlier_threshold: float = attrs.field(default=5.0, validator=_positive)

    def state_floats(self) -> int:
        """Return the numbers per parameter."""
        return 1

    def build(self, groups: ParamGroups) -> "torch.optim.Optimizer":
        """Return :class:`foundry_sdk.optim.DecoupledClipLion`."""
        from foundry_sdk.optim.adaptive_lion import DecoupledClipLion

        return DecoupledClipLion(
            groups,
            self.lr,
            self.betas,
            self.weight_decay,
            outlier_threshold=self.outlier_threshold,
        )


@attrs.frozen(kw_only=True)
class NoOpSpec(OptimizerSpec):
    """Changes nothing: to time or debug everything around the update."""

    kind = "no_op"
    lr: float = attrs.field(default=0.0, validator=_not_negative)

    def state_floats(self) -> int:
        """Return the numbers per parameter."""
        return 0

    def build(self, groups: ParamGroups) -> "torch.optim.Optimizer":
        """Return :class:`foundry_sdk.optim.NoOp`."""
        from foundry_sdk.optim.no_op import NoOp

        return NoOp(groups, self.lr)
