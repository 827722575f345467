"""What goes into a checkpoint of a model and its optimizer, under names that outlive wrappers.

Tensors are named ``model.<parameter or buffer>`` and ``optimizer.<parameter>.<state key>``,
whatever DDP, FSDP, ``torch.compile`` or activation checkpointing put around the model. Numbers of
the optimizer (step counts, hyperparameters) are JSON values.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from foundry_sdk.checkpoint.layout import TensorEntry
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.checkpoint.verify import Checkpoint
from foundry_sdk.errors import CheckpointError

MODEL: Final = "model."
OPTIMIZER: Final = "optimizer."
_SCALARS: Final = "optimizer"
_WRAPPERS: Final = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_log = logging.getLogger(__name__)


def model_and_optimizer_tensors(
    module: nn.Module, optimizer: Optimizer | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a model and its optimizer by name, and the optimizer's numbers.

    The tensors are the live ones: sharded where the model is, tied weights once, persistent
    buffers included. Weights that a forward left gathered are sharded again (FSDP2); where
    ``module`` is a part of what FSDP wraps as a whole, that is up to the caller.

    Raises:
        CheckpointError: the optimizer has a parameter that is not the module's.
    """
    _reshard(module)
    tensors = {MODEL + name: tensor for name, tensor in _model_tensors(module)}
    if optimizer is None:
        return tensors, {}
    names = _parameter_names(module)
    numbers: dict[str, dict[str, Any]] = {}
    for parameter in _parameters_of(optimizer):
        name = _name_of(parameter, names)
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.dim() > 0:
                tensors[f"{OPTIMIZER}{name}.{key}"] = value
            else:
                numbers.setdefault(name, {})[key] = _as_number(value, f"{name}.{key}")
    groups = [
        {
            "parameters": [_name_of(parameter, names) for parameter in group["params"]],
            "hyperparameters": {
                key: _as_hyperparameter(value) for key, value in group.items() if key != "params"
            },
        }
        for group in optimizer.param_groups
    ]
    described = {"class": type(optimizer).__name__, "state": numbers, "groups": groups}
    return tensors, {_SCALARS: described}


def load_into(
    store: CheckpointStore,
    checkpoint: Checkpoint,
    module: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    strict: bool = True,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Load a checkpoint into a model, and into its optimizer if given; return the values.

    Without ``optimizer`` only the model's tensors are read (``load_weights_only``). State that a
    fresh optimizer makes at its first step is made here, sharded as its parameter is.

    Args:
        store: where the collectives come from; the checkpoint may lie elsewhere.
        checkpoint: from ``store.newest`` or ``store.at``.
        module: sharded or not, on any number of ranks.
        optimizer: over the module's parameters.
        strict: the model's tensors must be those of the checkpoint, by name
            (``load_strict_model_weights``); shapes must be equal in any case.

    Returns:
        As ``CheckpointStore.load``.

    Raises:
        CheckpointError: the checkpoint is of another model or optimizer.
    """
    if optimizer is not None:
        _reshard(module)
        _make_state(module, optimizer, checkpoint.manifest.tensors)
    tensors, _ = model_and_optimizer_tensors(module, optimizer)
    prefix = MODEL if optimizer is None else ""
    scalars, per_rank = store.load(checkpoint, tensors, prefix=prefix, strict=strict)
    if optimizer is not None:
        restore_numbers(module, optimizer, scalars)
    return scalars, per_rank


def restore_numbers(module: nn.Module, optimizer: Optimizer, scalars: Mapping[str, Any]) -> None:
    """Put step counts and hyperparameters back into an optimizer whose tensors are loaded.

    Hyperparameters stay the optimizer's own, which are those of the spec, so that what a user
    changes for the rest of a run has its effect; each one that differs from the checkpoint's is
    logged.

    Raises:
        CheckpointError: the checkpoint has no optimizer, or one of another class or with other
            parameter groups.
    """
    stored = scalars.get(_SCALARS)
    if stored is None:
        raise CheckpointError(
            "the checkpoint has no optimizer state; set load_weights_only: true to start from "
            "its weights"
        )
    own_class = type(optimizer).__name__
    if stored["class"] != own_class:
        raise CheckpointError(
            f"the checkpoint's optimizer is {stored['class']}, the run's is {own_class}; use the "
            "same, or set load_weights_only: true to start from its weights"
        )
    names = _parameter_names(module)
    groups = [[_name_of(p, names) for p in group["params"]] for group in optimizer.param_groups]
    if [group["parameters"] for group in stored["groups"]] != groups:
        raise CheckpointError(
            "the checkpoint's optimizer has other parameter groups: "
            f"{_sizes(group['parameters'] for group in stored['groups'])} parameters, "
            f"here {_sizes(groups)}"
        )
    for group, of_checkpoint in zip(optimizer.param_groups, stored["groups"], strict=True):
        _report_changes(group, of_checkpoint["hyperparameters"])
        for parameter in group["params"]:
            numbers = stored["state"].get(_name_of(parameter, names), {})
            for key, number in numbers.items():
                _restore_number(optimizer, group, parameter, key, number)


def _reshard(module: nn.Module) -> None:
    for submodule in module.modules():
        if isinstance(submodule, FSDPModule):
            submodule.reshard()


def _model_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    module = _unwrapped(module)
    is_held = getattr(module, "in_checkpoint", None)
    for name, parameter in module.named_parameters():
        if is_held is None or is_held(_plain(name)):
            yield _plain(name), parameter
    seen: set[int] = set()
    for prefix, submodule in module.named_modules():
        for name, buffer in submodule.named_buffers(recurse=False):
            if name not in submodule._non_persistent_buffers_set and id(buffer) not in seen:
                seen.add(id(buffer))
                yield _plain(f"{prefix}.{name}" if prefix else name), buffer


def _parameter_names(module: nn.Module) -> dict[Tensor, str]:
    return {tensor: _plain(name) for name, tensor in _unwrapped(module).named_parameters()}


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _name_of(parameter: Tensor, names: Mapping[Tensor, str]) -> str:
    try:
        return names[parameter]
    except KeyError:
        raise CheckpointError(
            f"the optimizer has a parameter of shape {list(parameter.shape)} that is not the "
            "model's; make the optimizer after the model is wrapped"
        ) from None


def _make_state(module: nn.Module, optimizer: Optimizer, stored: Mapping[str, TensorEntry]) -> None:
    """Make the state tensors that the checkpoint has and the optimizer does not have yet."""
    for name, parameter in _unwrapped(module).named_parameters():
        start = f"{OPTIMIZER}{_plain(name)}."
        keys = [full.removeprefix(start) for full in stored if full.startswith(start)]
        for key in keys:
            # Parameter "a.b" is no state "b" of parameter "a".
            if "." in key or key in optimizer.state.get(parameter, {}):
                continue
            entry = stored[start + key]
            dtype = getattr(torch, entry.dtype)
            if entry.shape == tuple(parameter.shape):
                value = torch.zeros_like(parameter, dtype=dtype)
            else:
                value = torch.zeros(entry.shape, dtype=dtype, device=parameter.device)
            optimizer.state[parameter][key] = value.requires_grad_(False)


def _as_number(value: object, name: str) -> Any:  # noqa: ANN401 - a JSON value
    if isinstance(value, Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "value": value.item()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"{OPTIMIZER}{name}: a {type(value).__name__} cannot be saved; "
        "an optimizer's state is tensors and numbers"
    )


def _as_hyperparameter(value: Any) -> Any:  # noqa: ANN401 - whatever an optimizer has
    if isinstance(value, Tensor):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _report_changes(group: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    for key, value in stored.items():
        own = group.get(key)
        if _as_hyperparameter(own) != value and key != "lr":  # which the schedule writes
            _log.warning("optimizer.%s: %s from now on, %s in the checkpoint", key, own, value)


def _restore_number(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameter: Tensor,
    key: str,
    number: Any,  # noqa: ANN401 - a JSON value
) -> None:
    state = optimizer.state[parameter]
    if not isinstance(number, dict):
        state[key] = number
        return
    own = state.get(key)
    if isinstance(own, Tensor):
        own.fill_(number["value"])
        return
    # Where torch's optimizers keep their step counts.
    on_device = group.get("capturable") or group.get("fused") or key != "step"
    state[key] = torch.tensor(
        number["value"],
        dtype=getattr(torch, number["dtype"]),
        device=parameter.device if on_device else "cpu",
    )


def _sizes(groups: Any) -> str:  # noqa: ANN401 - an iterable of lists
    return " + ".join(str(len(group)) for group in groups)
