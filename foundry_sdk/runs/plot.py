"""Pictures of a run's curves, without a display."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from foundry_sdk.loggers.jsonl import MetricsLine, read_metrics

TRAIN_LOSS: Final = "loss/train/total"
_EVAL_PREFIX: Final = "metrics/eval"
_EVAL_LOSS: Final = "LanguageCrossEntropy"

Curve = tuple[Sequence[int], Sequence[float]]


def curve(lines: Sequence[MetricsLine], key: str) -> Curve:
    """Return the steps and finite values at which ``key`` was logged."""
    points = [
        (line.step, float(line.values[key]))
        for line in lines
        if key in line.values and math.isfinite(line.values[key])
    ]
    return [step for step, _ in points], [value for _, value in points]


def loss_curves(lines: Sequence[MetricsLine]) -> dict[str, Curve]:
    """Return the training loss and each eval loss, by label; only those that were logged."""
    keys = {TRAIN_LOSS: "train"}
    for line in lines:
        for key in line.values:
            if key.startswith(_EVAL_PREFIX) and key.endswith("/" + _EVAL_LOSS):
                label = key.removeprefix("metrics/").removesuffix("/" + _EVAL_LOSS)
                keys[key] = label
    curves = {label: curve(lines, key) for key, label in keys.items()}
    return {label: points for label, points in curves.items() if points[0]}


def plot_loss(metrics_path: Path, out_png: Path) -> bool:
    """Plot training and eval loss over steps; False, and no file, where none was logged."""
    curves = loss_curves(read_metrics(metrics_path))
    if not curves:
        return False
    temporary = out_png.with_name(out_png.name + ".tmp")
    temporary.write_bytes(draw(curves, title="loss", ylabel="nats per token", form="png"))
    temporary.replace(out_png)
    return True


def draw(curves: Mapping[str, Curve], *, title: str, ylabel: str, form: str) -> bytes:
    """Return a picture (``form``: ``png`` or ``svg``) of ``curves`` over the step."""
    figure = _figure()
    axes = figure.add_subplot()
    for label, (steps, values) in curves.items():
        # A curve of few points, such as eval, is nothing but its points.
        marker = "o" if len(steps) <= 50 else ""
        axes.plot(steps, values, label=label, linewidth=1.2, marker=marker, markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    if len(curves) > 1:
        axes.legend()
    buffer = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else None
    figure.savefig(buffer, format=form, dpi=120, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def _figure() -> Any:  # noqa: ANN401 - matplotlib has no types
    # A Figure with its own Agg canvas leaves pyplot's process-wide state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.6))
    FigureCanvasAgg(figure)
    return figure
