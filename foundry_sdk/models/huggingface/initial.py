"""Initial values by a transformers model's own rules, independent of devices.

The rules are code that fills tensors in place. They run once on tensors without values, while a
recorder keeps what was done to which; then each parameter is drawn whole from its own generator.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import attrs
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from foundry_sdk.errors import SpecError
from foundry_sdk.models.huggingface.skeleton import Around, Skeleton, meta_parameters
from foundry_sdk.models.init import Draw

_OVERWRITING: Final = {
    "aten::normal_",
    "aten::uniform_",
    "aten::zero_",
    "aten::fill_",
    "aten::copy_",
}
Place = tuple[tuple[int, ...], tuple[int, ...], int]
"""Size, stride and offset of a view."""


@attrs.frozen(kw_only=True, eq=False)
class Operation:
    """One change in place.

    Attributes:
        function: an operator such as ``aten.normal_``.
        place: which part of the parameter it fills.
        arguments, options: after the first argument.
    """

    function: Any
    place: Place
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The operator's name without its overload."""
        return str(self.function._schema.name)

    def run(self, whole: Tensor, generator: torch.Generator) -> None:
        """Do to ``whole`` what was done to the parameter."""
        options = dict(self.options)
        if any(argument.name == "generator" for argument in self.function._schema.arguments):
            options["generator"] = generator
        self.function(whole.as_strided(*self.place), *self.arguments, **options)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps each change of a tensor on the meta device, by its storage."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: dict[int, list[Operation]] = {}
        self.made: dict[int, Tensor] = {}
        self._undefined: set[int] = set()
        self._alive: list[Tensor] = []  # a storage's address is its name only while it lives

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        if func._schema.name == "aten::empty":
            self._alive.append(result)
            self._undefined.add(_storage(result))
        elif func._schema.is_mutable and args and isinstance(args[0], Tensor):
            self._changed(func, args, kwargs or {})
        return result

    def registered(self, moved: nn.Parameter, made: nn.Parameter) -> None:
        """Keep the value that a constructor gave, unless it left it undefined."""
        self._alive.append(moved)
        if _storage(made) not in self._undefined:
            self.made[_storage(moved)] = made.detach()

    def _changed(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:  # noqa: ANN401
        changed: Tensor = args[0]
        if changed.device.type != "meta":
            self._undefined.discard(_storage(changed))
            return
        self._alive.append(changed)
        place = (tuple(changed.shape), tuple(changed.stride()), int(changed.storage_offset()))
        arguments = tuple(a.clone() if isinstance(a, Tensor) else a for a in args[1:])
        self.operations.setdefault(_storage(changed), []).append(
            Operation(
                function=func,
                place=place,
                arguments=arguments,
                options={key: value for key, value in options.items() if key != "generator"},
            )
        )


def recorded_draws(make: Callable[[Around], Skeleton], *, seed: int) -> dict[str, Draw]:
    """Return how each parameter is drawn, by name.

    Args:
        make: builds the model in a context that it makes with its argument.
        seed: of the numbers that a constructor draws itself, the same on every rank.

    Raises:
        SpecError: the model fills a parameter in a way that cannot be repeated, or not at all.
    """
    recorder = _Recorder()

    @contextmanager
    def recording() -> Iterator[None]:
        with meta_parameters(recorder.registered), recorder:
            yield

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        skeleton = make(recording)
    draws: dict[str, Draw] = {}
    for name, parameter in skeleton.module.named_parameters():
        key = _storage(parameter)
        operations = _effective(recorder.operations.get(key, []), parameter)
        start = recorder.made.get(key)
        whole = (tuple(parameter.shape), tuple(parameter.stride()), 0)
        overwritten = bool(operations) and (
            operations[0].place == whole and operations[0].name in _OVERWRITING
        )
        odd = any(
            isinstance(argument, Tensor) and argument.device.type == "meta"
            for operation in operations
            for argument in operation.arguments
        )
        if odd or not (overwritten or start is not None):
            raise SpecError(
                f"model: {type(skeleton.module).__name__} has no rule for the initial values of "
                f"{name} that could be repeated here; begin from weights (pretrained: true)"
            )
        draws[name] = partial(_draw, start=None if overwritten else start, operations=operations)
    return draws


def _draw(
    whole: Tensor, generator: torch.Generator, *, start: Tensor | None, operations: list[Operation]
) -> None:
    if start is not None:
        whole.copy_(start)
    for operation in operations:
        operation.run(whole, generator)


def _effective(operations: list[Operation], parameter: Tensor) -> list[Operation]:
    """Return the operations from the last one on that overwrites the whole parameter."""
    whole = (tuple(parameter.shape), tuple(parameter.stride()), 0)
    for number in reversed(range(len(operations))):
        if operations[number].place == whole and operations[number].name in _OVERWRITING:
            return operations[number:]
    return operations


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
