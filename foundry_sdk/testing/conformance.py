"""``check_component``: one call that holds a component against everything a run relies on."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.component import ComponentSpec
from foundry_sdk.data.contract import DataSpec, LoaderContext, PreprocessorSpec
from foundry_sdk.events import RunStarted
from foundry_sdk.loggers.contract import LoggerSpec
from foundry_sdk.losses.contract import LossSpec
from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.optim.contract import OptimizerSpec, SchedulerSpec
from foundry_sdk.testing.callbacks import check_callback
from foundry_sdk.testing.declaration import check_declaration, check_fields, family_of
from foundry_sdk.testing.failure import ConformanceError, expect, name_of, through_pickle
from foundry_sdk.testing.loaders import check_loader
from foundry_sdk.testing.losses import check_loss
from foundry_sdk.testing.models import check_model
from foundry_sdk.testing.optimizers import check_optimizer
from foundry_sdk.testing.preprocessors import check_preprocessor
from foundry_sdk.testing.schedulers import check_scheduler

Row = Mapping[str, Any]


def check_component(
    component: ComponentSpec | type[ComponentSpec],
    *,
    row: Row | None = None,
    wrong_rows: Sequence[Row] = (),
    context: LoaderContext | None = None,
    run: RunStarted | None = None,
    equals: LossSpec | None = None,
) -> None:
    """Check a component: how it is declared, its fields, and what it builds.

    Args:
        component: a spec, or its class where every field has a default.
        row: a row that a preprocessor takes; needed for one.
        wrong_rows: rows that a preprocessor must refuse, besides one of an unknown column.
        context: what a loader is built for, such as ``tiny_context(...)``; needed for one.
        run: the start of the run that a callback or logger is built for; None = ``tiny_run()``.
        equals: a loss of which this one is another way to compute.

    Raises:
        ConformanceError: a promise is not kept; the message says which and what to fix.
        TypeError: an argument is missing, or is of no use for a component of this family.
    """
    cls = component if isinstance(component, type) else type(component)
    if not issubclass(cls, ComponentSpec):
        raise ConformanceError(f"{cls.__name__}: derive it from a family such as OptimizerSpec")
    family = family_of(cls)
    _check_arguments(
        cls,
        family,
        row=row,
        wrong_rows=wrong_rows or None,
        context=context,
        run=run,
        equals=equals,
    )
    check_declaration(cls)
    spec = _spec(component)
    check_fields(spec)
    expect(
        through_pickle(spec, spec) == spec,
        spec,
        "sent to another process, the spec is not equal any more; compare fields by value",
    )
    if isinstance(spec, PreprocessorSpec) and row is not None:
        check_preprocessor(spec, row, wrong_rows)
    elif isinstance(spec, DataSpec) and context is not None:
        check_loader(spec, context)
    elif isinstance(spec, CallbackSpec | LoggerSpec):
        check_callback(spec, run)
    elif isinstance(spec, LossSpec):
        check_loss(spec, equals)
    elif isinstance(spec, ModelSpec):
        check_model(spec)
    elif isinstance(spec, OptimizerSpec):
        check_optimizer(spec)
    elif isinstance(spec, SchedulerSpec):
        check_scheduler(spec)


_OF_FAMILY: Mapping[str, tuple[type[ComponentSpec], ...]] = {
    "row": (PreprocessorSpec,),
    "wrong_rows": (PreprocessorSpec,),
    "context": (DataSpec,),
    "run": (CallbackSpec, LoggerSpec),
    "equals": (LossSpec,),
}
_NEEDED = ("row", "context")


def _check_arguments(
    cls: type[ComponentSpec], family: type[ComponentSpec], **given: object
) -> None:
    for name, value in given.items():
        fits = family in _OF_FAMILY[name]
        if value is not None and not fits:
            raise TypeError(f"{name_of(cls)}: {name}= is of no use for a {family.family}")
        if value is None and fits and name in _NEEDED:
            raise TypeError(f"{name_of(cls)}: a {family.family} is checked with {name}=...")


def _spec(component: ComponentSpec | type[ComponentSpec]) -> ComponentSpec:
    if isinstance(component, ComponentSpec):
        return component
    needed = [
        field.name
        for field in attrs.fields(component)
        if field.init and field.default is attrs.NOTHING
    ]
    if needed:
        raise TypeError(
            f"{name_of(component)}: {', '.join(needed)} has no default; pass a spec, such as "
            f"{component.__name__}({needed[0]}=...)"
        )
    return component()
