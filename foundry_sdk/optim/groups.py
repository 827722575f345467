"""Which parameters an optimizer trains, and with which settings."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from foundry_sdk.errors import SpecError
from foundry_sdk.optim.contract import OptimizerSpec, ParamGroups

if TYPE_CHECKING:
    from torch import nn

_MATCH_KEY = "param_str_match"


def param_groups(
    named_parameters: Iterable[tuple[str, "nn.Parameter"]], spec: OptimizerSpec
) -> ParamGroups:
    """Freeze what ``spec.disable_grad`` names and group the rest by ``spec.param_groups``.

    A regex matches anywhere in a name (``re.search``); of several groups the first that matches
    takes a parameter. Parameters that do not require gradients are in no group.

    Args:
        named_parameters: of the model, each tensor once (``model.named_parameters()``).
        spec: the optimizer's.

    Returns:
        Group 0 holds what no regex matched and has the optimizer's own settings (left out where
        all are matched); the others follow in the order of the spec, each with its overrides.

    Raises:
        SpecError: a regex is none or matches nothing, an override is unknown or of a wrong value,
            or nothing is left to train.
    """
    named = dict(named_parameters)
    _disable_grad(named, spec.disable_grad)
    rest = {name: p for name, p in named.items() if p.requires_grad}
    if not rest:
        raise SpecError("optimizer: no parameter is left to train; none requires a gradient")
    trained = list(rest)
    groups: ParamGroups = []
    for index, entry in enumerate(spec.param_groups or ()):
        path = f"optimizer.param_groups[{index}]"
        pattern, overrides = _read(entry, spec, path)
        names = [name for name in rest if pattern.search(name)]
        if not names:
            reason = _why_nothing(pattern, named, trained)
            raise SpecError(f"{path}.{_MATCH_KEY}: {pattern.pattern!r} {reason}")
        groups.append({"params": [rest.pop(name) for name in names], **overrides})
    return ([{"params": list(rest.values())}] if rest else []) + groups


def _disable_grad(
    named: Mapping[str, "nn.Parameter"], patterns: Sequence[str] | str | None
) -> None:
    listed = [patterns] if isinstance(patterns, str) else list(patterns or ())
    compiled = [_compile(text, "optimizer.disable_grad") for text in listed]
    for pattern in compiled:
        names = [name for name in named if pattern.search(name)]
        if not names:
            reason = f"matches no parameter; {_near(pattern.pattern, list(named))}"
            raise SpecError(f"optimizer.disable_grad: {pattern.pattern!r} {reason}")
        for name in names:
            named[name].requires_grad_(False)


def _read(
    entry: Mapping[str, Any], spec: OptimizerSpec, path: str
) -> tuple[re.Pattern[str], dict[str, Any]]:
    """Return the regex and the checked overrides of one entry of ``param_groups``."""
    if _MATCH_KEY not in entry:
        raise SpecError(f"{path}: {_MATCH_KEY!r} is missing; it is the regex of parameter names")
    own = ("disable_grad", "param_groups")
    allowed = [field.name for field in attrs.fields(type(spec)) if field.name not in own]
    overrides: dict[str, Any] = {}
    for key, value in entry.items():
        if key == _MATCH_KEY:
            continue
        if key == "params":
            raise SpecError(f"{path}: 'params' is not allowed; {_MATCH_KEY!r} selects parameters")
        if key not in allowed:
            raise SpecError(
                f"{path}: {spec.kind} has no setting {key!r} for a group; "
                f"{_near(str(key), allowed)}"
            )
        overrides[key] = _checked(value, spec, key=key, path=path)
    return _compile(entry[_MATCH_KEY], f"{path}.{_MATCH_KEY}"), overrides


def _checked(value: object, spec: OptimizerSpec, *, key: str, path: str) -> object:
    """Return ``value`` as the spec's own field would hold it."""
    present = getattr(spec, key)
    wanted = type(present)
    kinds = (int, float) if wanted is float else (list, tuple) if wanted is tuple else (wanted,)
    if not isinstance(value, kinds) or isinstance(value, bool) is not (wanted is bool):
        raise SpecError(f"{path}.{key}: expected a value like {present!r}, got {value!r}")
    changed: dict[str, Any] = {key: float(value) if wanted is float else value}  # type: ignore[arg-type]  # a number, checked above
    try:
        return getattr(attrs.evolve(spec, **changed), key)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{path}.{key}: {error}") from error


def _compile(text: object, path: str) -> re.Pattern[str]:
    if not isinstance(text, str):
        raise SpecError(f"{path}: expected a regex of parameter names, got {text!r}")
    try:
        return re.compile(text)
    except re.error as error:
        raise SpecError(f"{path}: {text!r} is no regex: {error}") from error


def _why_nothing(
    pattern: re.Pattern[str], named: Mapping[str, object], trained: Sequence[str]
) -> str:
    """Say why no parameter was left for ``pattern``."""
    if any(pattern.search(name) for name in trained):
        return "matches only parameters that an earlier group took; put it first"
    if any(pattern.search(name) for name in named):
        return "matches only parameters that are not trained"
    return f"matches no parameter; {_near(pattern.pattern, list(named))}"


def _near(text: str, names: Sequence[str]) -> str:
    plain = re.sub(r"\\(.)", r"\1", text)
    near = difflib.get_close_matches(plain, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(map(repr, near))}?"
    shown = ", ".join(names[:8])
    return f"there are {shown}{' …' if len(names) > 8 else ''}"
