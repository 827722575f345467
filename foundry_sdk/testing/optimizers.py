"""Checks of optimizers: the loop's learning rate, state through a checkpoint, one by one."""

import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foundry_sdk.optim.contract import OptimizerSpec
from foundry_sdk.testing.failure import expect

_SHAPES = ((6, 4), (4, 6), (5, 5), (7,), (1,), (2, 3, 2))
_STEPS = 3


def check_optimizer(spec: OptimizerSpec) -> None:
    """Check the optimizer on matrices, vectors and a cube, with gradients of changing sizes.

    Raises:
        ConformanceError: something is not as the loop and checkpoints need it.
    """
    _check_groups(spec)
    _check_determinism(spec)
    _check_learning_rate(spec)
    _check_what_stays(spec)
    _check_state(spec)
    _check_one_by_one(spec)


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(2)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in _SHAPES]


def _take(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], steps: range
) -> None:
    """Make ``steps``, each with the gradients of its number."""
    for step in steps:
        for number, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(100 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0**-step
        optimizer.step()
        optimizer.zero_grad()


def _build(spec: OptimizerSpec, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return spec.build([{"params": list(parameters)}])


def _check_groups(spec: OptimizerSpec) -> None:
    parameters = _parameters()
    first, second = parameters[:3], parameters[3:]
    optimizer = spec.build([{"params": first}, {"params": second}])
    held = [p for group in optimizer.param_groups for p in group["params"]]
    expect(
        sorted(map(id, held)) == sorted(map(id, parameters)),
        spec,
        f"it was given {len(parameters)} parameters in two groups and holds {len(held)}; keep "
        "each of them once",
    )
    for group in optimizer.param_groups:
        expect(
            group.get("initial_lr") == group.get("lr") and "lr" in group,
            spec,
            f"the loop sets group['lr'] = group['initial_lr'] * multiplier, but a new group has "
            f"initial_lr {group.get('initial_lr')!r} and lr {group.get('lr')!r}; set initial_lr to "
            "each group's lr",
        )


def _check_determinism(spec: OptimizerSpec) -> None:
    found = []
    for _ in range(2):
        parameters = _parameters()
        _take(_build(spec, parameters), parameters, range(_STEPS))
        found.append([p.detach() for p in parameters])
    expect(
        _all(torch.equal, *found),
        spec,
        "the same gradients give other parameters the second time; seed what is random from the "
        "state",
    )
    expect(
        all(tensor.isfinite().all() for tensor in found[0]),
        spec,
        "after a few steps parameters are not finite",
    )


def _check_learning_rate(spec: OptimizerSpec) -> None:
    parameters = _parameters()
    optimizer = _build(spec, parameters)
    _take(optimizer, parameters, range(1))
    before = [p.detach().clone() for p in parameters]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    _take(optimizer, parameters, range(1, 2))
    expect(
        _all(torch.equal, before, parameters),
        spec,
        "parameters move although the loop set group['lr'] to 0; read the learning rate from the "
        "group at each step, and let weight decay follow it",
    )


def _check_what_stays(spec: OptimizerSpec) -> None:
    parameters = _parameters()
    optimizer = _build(spec, parameters)
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    expect(
        _all(torch.equal, before, parameters),
        spec,
        "parameters without a gradient move; leave those alone whose grad is None",
    )
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    expect(
        all(parameter.isfinite().all() for parameter in parameters),
        spec,
        "a gradient of zeros makes parameters NaN or infinite; add eps where it divides by a norm",
    )


def _check_state(spec: OptimizerSpec) -> None:
    parameters = _parameters()
    optimizer = _build(spec, parameters)
    _take(optimizer, parameters, range(_STEPS))
    state = _through_file(optimizer.state_dict())
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]
    resumed = _build(spec, copies)
    resumed.load_state_dict(state)
    rest = range(_STEPS, 2 * _STEPS)
    _take(optimizer, parameters, rest)
    _take(resumed, copies, rest)
    expect(
        _all(torch.equal, parameters, copies),
        spec,
        "after load_state_dict it goes on otherwise; keep all that an update depends on in "
        "self.state and in the groups",
    )
    said = spec.state_floats()
    if said is not None:
        found = sum(
            value.numel()
            for parameter in parameters
            for value in optimizer.state.get(parameter, {}).values()
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.numel() > 1
        )
        counted = sum(p.numel() for p in parameters if p.numel() > 1)
        expect(
            found == said * counted,
            spec,
            f"state_floats() says {said} numbers per parameter, the state has "
            f"{found / counted:.3g}",
        )


def _check_one_by_one(spec: OptimizerSpec) -> None:
    together, alone = _parameters(), _parameters()
    _take(_build(spec, together), together, range(_STEPS))
    for number, parameter in enumerate(alone):
        optimizer = _build(spec, [parameter])
        for step in range(_STEPS):
            generator = torch.Generator().manual_seed(100 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0**-step
            optimizer.step()
    for number, (one, other) in enumerate(zip(together, alone, strict=True)):
        expect(
            torch.allclose(one, other, rtol=1e-5, atol=1e-7),
            spec,
            f"parameter {number} {tuple(one.shape)} is updated otherwise when it is alone, by up "
            f"to {float((one - other).detach().abs().max()):.3g}; an update may depend on the "
            "parameter's own gradients and state only",
        )


def _through_file(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state as read from a file that holds tensors and plain values alone."""
    file = io.BytesIO()
    torch.save(copy.deepcopy(state), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def _all(
    same: Callable[[Tensor, Tensor], bool], left: Sequence[Tensor], right: Sequence[Tensor]
) -> bool:
    return all(same(one, other) for one, other in zip(left, right, strict=True))
