"""How a conformance check fails, and what several checks share."""

from multiprocessing.reduction import ForkingPickler
from typing import TypeVar

import torch
from torch import Tensor

from foundry_sdk.component import ComponentSpec

T = TypeVar("T")


class ConformanceError(AssertionError):
    """A component does not keep a promise; the message says which, and what to fix."""


def expect(holds: object, component: object, sentence: str) -> None:
    """Raise unless ``holds``.

    Args:
        holds: whether the promise is kept.
        component: spec or class; its name begins the message.
        sentence: what was found, what is expected, what to do.

    Raises:
        ConformanceError: with the sentence.
    """
    if not holds:
        raise ConformanceError(f"{name_of(component)}: {sentence}")


def name_of(component: object) -> str:
    """Return what messages call a component: ``optimizer 'muon'`` or the class's name."""
    cls = component if isinstance(component, type) else type(component)
    kind, family = (getattr(cls, tag, None) for tag in ("kind", "family"))
    if issubclass(cls, ComponentSpec) and isinstance(kind, str) and isinstance(family, str):
        return f"{family} {kind!r}"
    return cls.__name__


def through_pickle(value: T, component: object) -> T:
    """Return ``value`` as a process of the loader would get it.

    Raises:
        ConformanceError: it cannot be sent to another process.
    """
    try:
        copy: T = ForkingPickler.loads(ForkingPickler.dumps(value))
    except (TypeError, AttributeError, ValueError, ImportError) as error:
        raise ConformanceError(
            f"{name_of(component)}: {type(value).__name__} cannot be sent to the processes that "
            f"load data ({type(error).__name__}: {error}); define it at the top of an importable "
            "module and keep files, locks, lambdas and local functions out of its attributes"
        ) from error
    # ForkingPickler's reader is the plain one: what it makes is of the class that was sent.
    expect(
        type(copy) is type(value),
        component,
        f"sent to another process, {type(value).__name__} arrives as {type(copy).__name__}",
    )
    return copy


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Tell whether two tensors are equal bit for bit; NaN equals NaN."""
    return torch.equal(left.nan_to_num(nan=12345.0), right.nan_to_num(nan=12345.0))
