"""The spec of ``muon``: its fields, and which parameters it takes for hidden matrices."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
from attrs import validators

from foundry_sdk.errors import SpecError
from foundry_sdk.optim.contract import OptimizerSpec, ParamGroups

if TYPE_CHECKING:
    import torch

NOT_HIDDEN: Final = (
    r"(^|\.)(wte|wpe|lm_head|embed|head|shared|embed_in|embed_out|embed_tokens|embed_positions"
    r"|tok_embeddings|word_embeddings|relative_attention_bias)\."
)
"""Names of embeddings and heads in MPT, in the models of transformers, and by custom."""

_KEY: Final = "algorithm"
_Groups = tuple[Mapping[str, Any], ...]


def _with_embeddings(groups: Iterable[Mapping[str, Any]] | None) -> _Groups:
    """Put embeddings and heads under AdamW unless a group says itself what is under what."""
    given = tuple(groups or ())
    if any(_KEY in group for group in given):
        return given
    return ({"param_str_match": NOT_HIDDEN, _KEY: "adamw"}, *given)


def _pair(betas: Sequence[float]) -> tuple[float, ...]:
    return tuple(betas)


def _finite(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name} must be a finite number >= 0, got {value!r}")


def _share(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{attribute.name} must be >= 0 and < 1, got {value!r}")


def _betas(_: object, attribute: "attrs.Attribute[Any]", value: tuple[float, ...]) -> None:
    if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
        raise ValueError(f"{attribute.name} must be two numbers in [0, 1), got {value!r}")


@attrs.frozen(kw_only=True)
class MuonSpec(OptimizerSpec):
    """Muon for hidden matrices, AdamW for embeddings, heads, norms and biases.

    Weight decay is that of Muon's authors and of torch's AdamW: it is multiplied by the learning
    rate. Both learning rates follow the run's schedule.

    Attributes:
        lr: peak learning rate of the matrices.
        momentum: decay rate of the average of gradients.
        nesterov: look one step of momentum ahead.
        ns_steps: Newton-Schulz iterations.
        scale: ``shape``: max(1, rows / columns) ** 0.5, as published; ``rms``: 0.2 * max(rows,
            columns) ** 0.5, so that updates are as large as AdamW's (Liu et al. 2025, "Muon is
            Scalable for LLM Training", equation 4) and its learning rates can be used.
        weight_decay: of the matrices.
        algorithm: for groups: ``adamw`` keeps a group's matrices out of Muon. Unless a group of
            ``param_groups`` sets it, a first group with ``NOT_HIDDEN`` is added.
        adamw_lr: peak learning rate of everything else.
        adamw_betas: decay rates of AdamW's two averages.
        adamw_eps: added to AdamW's denominator.
        adamw_weight_decay: of everything else.
    """

    kind = "muon"
    lr: float = attrs.field(default=0.02, validator=_finite)
    param_groups: _Groups | None = attrs.field(default=None, converter=_with_embeddings)
    momentum: float = attrs.field(default=0.95, validator=_share)
    nesterov: bool = True
    ns_steps: int = attrs.field(default=5, validator=validators.ge(1))
    scale: Literal["shape", "rms"] = attrs.field(
        default="shape", validator=validators.in_(("shape", "rms"))
    )
    weight_decay: float = attrs.field(default=0.0, validator=_finite)
    algorithm: Literal["muon", "adamw"] = attrs.field(
        default="muon", validator=validators.in_(("muon", "adamw"))
    )
    adamw_lr: float = attrs.field(default=3e-4, validator=_finite)
    adamw_betas: tuple[float, float] = attrs.field(
        default=(0.9, 0.95), converter=_pair, validator=_betas
    )
    adamw_eps: float = attrs.field(default=1e-10, validator=validators.gt(0))
    adamw_weight_decay: float = attrs.field(default=0.0, validator=_finite)

    def build(self, groups: ParamGroups) -> "torch.optim.Optimizer":
        """Return the optimizer; each group becomes one of matrices and one of the rest.

        Raises:
            SpecError: a group under AdamW sets an option of Muon.
        """
        from foundry_sdk_muon.optimizer import Muon

        split: ParamGroups = []
        for group in groups:
            split += self._split(group)
        return Muon(split)

    def _split(self, group: Mapping[str, Any]) -> ParamGroups:
        own = {name: group.get(name, getattr(self, name)) for name in (*_MUON, *_ADAMW)}
        algorithm = group.get(_KEY, self.algorithm)
        useless = [name for name in _MUON if name in group]
        if algorithm == "adamw" and useless:
            raise SpecError(
                f"optimizer.param_groups: {', '.join(useless)} has no effect in a group with "
                f"algorithm: adamw; its options begin with adamw_"
            )
        matrices = [p for p in group["params"] if algorithm == "muon" and p.dim() == 2]
        taken = {id(p) for p in matrices}
        rest = [p for p in group["params"] if id(p) not in taken]
        muon = {name: own[name] for name in _MUON}
        adamw = {name.removeprefix("adamw_"): own[name] for name in _ADAMW}
        both = (
            {"params": matrices, "algorithm": "muon", **muon},
            {"params": rest, "algorithm": "adamw", **adamw},
        )
        return [{**made, "initial_lr": made["lr"]} for made in both if made["params"]]


_MUON: Final = ("lr", "momentum", "nesterov", "ns_steps", "scale", "weight_decay")
_ADAMW: Final = ("adamw_lr", "adamw_betas", "adamw_eps", "adamw_weight_decay")
