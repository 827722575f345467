"""A curve drawn with characters."""

from collections.abc import Sequence
from itertools import pairwise

from foundry_sdk.errors import DataError

_BLOCKS = " ▁▂▃▄▅▆▇█"


def text_chart(
    steps: Sequence[int], values: Sequence[float], *, width: int = 60, height: int = 8
) -> str:
    """Return a filled curve of ``values`` over ``steps``, with both axes.

    Each column is the mean of the values whose steps fall into it, so a noisy curve becomes
    readable; a column without any continues the one before.

    Args:
        steps: increasing.
        values: as many, finite.
        width: of the drawn area, in characters.
        height: of the drawn area, in lines.

    Raises:
        DataError: there are no values, or not one per step.
    """
    if not values or len(steps) != len(values):
        raise DataError(f"a chart needs one value per step, got {len(values)} for {len(steps)}")
    means = _columns(steps, values, width)
    low, high = min(means), max(means)
    floor = max(0.0, low - (high - low) * 0.1)  # so that the lowest column is still seen
    span = (high - floor) or 1.0
    eighths = [max(1, round((mean - floor) / span * height * 8)) for mean in means]
    rows = []
    for row in range(height, 0, -1):
        bars = "".join(_BLOCKS[min(8, max(0, level - (row - 1) * 8))] for level in eighths)
        label = high if row == height else floor if row == 1 else None
        rows.append(f"{'' if label is None else f'{label:.2f}':>7} │{bars}")
    first, last = str(steps[0]), str(steps[-1])
    gap = " " * max(1, width - len(first) - len(last))
    return "\n".join([*rows, f"{'':>7} └{'─' * width}", f"{'':>9}{first}{gap}{last}"])


def _columns(steps: Sequence[int], values: Sequence[float], width: int) -> list[float]:
    first, last = steps[0], steps[-1]
    edges = [first + (last - first) * column / width for column in range(width + 1)]
    means: list[float] = []
    for column, (left, right) in enumerate(pairwise(edges)):
        inside = [
            value
            for step, value in zip(steps, values, strict=True)
            if left <= step < right or (step == last and column == width - 1)
        ]
        means.append(sum(inside) / len(inside) if inside else means[-1] if means else values[0])
    return means
