"""``activation_checkpointing_target``: which blocks are recomputed in the backward pass."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_BLOCK: Final = "mptblock"
_PARTS: Final = (
    "norm_attn_norm",
    "multihead_attention",
    "multiquery_attention",
    "grouped_query_attention",
    "mptmlp",
    "mptglu",
    "layernorm",
    "low_precision_layernorm",
    "rmsnorm",
    "low_precision_rmsnorm",
)
_RULE: Final = re.compile(r"(first|last|middle)-(\d+)|range-(\d+)-(\d+)")


def recomputed_layers(target: Any, layers: int) -> tuple[int, ...]:  # noqa: ANN401 - a YAML value
    """Return the numbers of the blocks that ``target`` names, ascending.

    Args:
        target: None or ``mptblock``: all; ``{mptblock: WHICH}``: a count n (the first n), a text
            of comma-separated ``first-n``, ``last-n``, ``middle-n`` and ``range-i-j`` (j not
            included), or a list of block numbers and such texts.
        layers: number of blocks.

    Raises:
        ValueError: it names something else than blocks, or blocks that there are not.
    """
    if target is None:
        return tuple(range(layers))
    if isinstance(target, Mapping):
        _only_blocks(list(target))
        return _which(target[_BLOCK], layers)
    _only_blocks([target] if isinstance(target, str) else target)
    return tuple(range(layers))


def _only_blocks(names: Any) -> None:  # noqa: ANN401 - a YAML value
    if not isinstance(names, Sequence) or list(names) != [_BLOCK]:
        known = [name for name in names if name in _PARTS] if isinstance(names, Sequence) else []
        why = "parts of a block are not recomputed by themselves here" if known else "unknown"
        raise ValueError(
            f"activation_checkpointing_target {names!r}: {why}; use {_BLOCK}, or a mapping such as "
            f"{{{_BLOCK}: first-8}}"
        )


def _which(value: Any, layers: int) -> tuple[int, ...]:  # noqa: ANN401 - a YAML value
    if isinstance(value, int) and not isinstance(value, bool):
        return tuple(range(_at_most(value, layers)))
    chosen: set[int] = set()
    for item in [value] if isinstance(value, str) else _as_list(value):
        if isinstance(item, int) and not isinstance(item, bool):
            if not 0 <= item < layers:
                raise ValueError(f"activation_checkpointing_target: there is no block {item}")
            chosen.add(item)
        else:
            for rule in str(item).split(","):
                chosen.update(_by_rule(rule.strip(), layers))
    return tuple(sorted(chosen))


def _as_list(value: Any) -> list[Any]:  # noqa: ANN401 - a YAML value
    if isinstance(value, list | tuple):
        return list(value)
    raise ValueError(f"activation_checkpointing_target: {value!r} names no blocks")


def _by_rule(rule: str, layers: int) -> range:
    match = _RULE.fullmatch(rule)
    if match is None:
        raise ValueError(
            f"activation_checkpointing_target: {rule!r} is none of first-n, last-n, middle-n, "
            "range-i-j"
        )
    kind, count, start, stop = match.groups()
    if kind is None:
        if not 0 <= int(start) < int(stop) <= layers:
            raise ValueError(f"activation_checkpointing_target: {rule!r} is not within {layers}")
        return range(int(start), int(stop))
    number = _at_most(int(count), layers)
    begins: Mapping[str, Callable[[], int]] = {
        "first": lambda: 0,
        "last": lambda: layers - number,
        "middle": lambda: max(layers // 2 - number // 2, 0),
    }
    begin = begins[kind]()
    return range(begin, begin + number)


def _at_most(number: int, layers: int) -> int:
    if not 0 <= number <= layers:
        raise ValueError(
            f"activation_checkpointing_target: {number} blocks of a model that has {layers}"
        )
    return number
