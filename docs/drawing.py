"""Shapes that the pictures of batches are made of: tables, running text, matrices."""

import io
from collections.abc import Sequence
from typing import Any, Final

import torch
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

LEARNED: Final = "#b7e4c7"
READ: Final = "#eceff3"
PADDING: Final = "#ffffff"
DOCUMENTS: Final = ("#d3e3fd", "#ffe3b8", "#e6d4f5")
SEEN: Final = dict(zip(DOCUMENTS, ("#4f83e0", "#eda02f", "#9d70d0"), strict=True))
SEEN_ELSEWHERE: Final = "#bcc5ce"
INK: Final = "#1f2933"
FAINT: Final = "#9aa5b1"
EDGE: Final = "#c3ccd6"
UNSEEN: Final = "#f4f6f8"


def table(
    axes: Any,
    lines: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    *,
    faint: frozenset[str] | set[str] = frozenset(),
) -> None:
    """Draw rows of cells of equal width, each row with its name at the left."""
    columns = len(lines[0][1])
    for row, (name, words, colours) in enumerate(lines):
        axes.text(-0.2, row + 0.5, name, ha="right", va="center", fontsize=9, color=INK)
        for column, (word, colour) in enumerate(zip(words, colours, strict=True)):
            if name not in faint:
                axes.add_patch(
                    Rectangle((column, row + 0.06), 1, 0.88, facecolor=colour, edgecolor=EDGE)
                )
            quiet = name in faint or word in {"-100", "·"}
            ink = FAINT if quiet else INK
            axes.text(
                column + 0.5, row + 0.5, word, ha="center", va="center", fontsize=8, color=ink
            )
    axes.set_xlim(-0.34 * columns, columns + 0.1)
    axes.set_ylim(len(lines) + 0.1, -0.1)


def running_text(
    axes: Any,
    words: Sequence[str],
    is_target: Sequence[bool],
    *,
    corner: tuple[float, float],
    title: str,
) -> None:
    """Draw tokens one behind the other, a line for each message; widths are in characters."""
    left, top = corner
    axes.text(left, top - 0.55, title, fontsize=9, color=INK, fontweight="bold", va="center")
    x, y = left, top
    for word, learned in zip(words, is_target, strict=True):
        if word == "<|im_start|>" and x > left:
            x, y = left, y + 1.6
        wide = 0.95 * len(word) + 0.9
        axes.add_patch(
            Rectangle((x, y), wide, 1.2, facecolor=LEARNED if learned else READ, edgecolor="white")
        )
        axes.text(
            x + wide / 2,
            y + 0.62,
            word,
            ha="center",
            va="center",
            fontsize=7,
            family="monospace",
            color=INK,
        )
        x += wide


def matrix(
    axes: Any,
    seen: torch.Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    colours: Sequence[str],
) -> None:
    """Draw which outputs (rows) depend on which inputs (columns); each input has its colour."""
    for row in range(seen.shape[0]):
        for column, colour in enumerate(colours):
            strong = SEEN.get(colour, SEEN_ELSEWHERE)
            face = strong if seen[row, column] else UNSEEN
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fc=face, ec="white"))
    for row, word in enumerate(rows):
        axes.text(-0.8, row, word, ha="right", va="center", fontsize=7, color=INK)
    for column, word in enumerate(columns):
        axes.text(column, -0.8, word, ha="center", va="bottom", fontsize=7, color=INK, rotation=90)
    axes.set_xlim(-0.6, seen.shape[1] - 0.4)
    axes.set_ylim(seen.shape[0] - 0.4, -0.6)


def new_figure(width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure of so many inches, and axes that fill it."""
    figure = Figure(figsize=(width, height))
    return figure, new_axes(figure, (0.0, 0.0, 1.0, 1.0))


def new_axes(figure: Figure, place: tuple[float, float, float, float]) -> Any:
    """Return axes without frame at (left, bottom, width, height) of the figure."""
    axes = figure.add_axes(place)
    axes.set_axis_off()
    return axes


def svg(figure: Figure) -> str:
    """Return the figure as SVG, the same bytes each time."""
    out = io.StringIO()
    with rc_context({"svg.hashsalt": "foundry-sdk"}):
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(out, metadata={"Date": None})
    return out.getvalue()
