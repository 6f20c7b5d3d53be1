"""Plots of growth: several quantities over one axis, next to each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Curve:
    """The values of one quantity over an axis."""

    title: str
    x: Sequence[float]
    y: Sequence[float]


def save_plot(path: Path, axis: str, curves: Sequence[Curve]) -> None:
    """Write a PNG with the curves next to each other, over a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(4 * len(curves), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for place, curve in enumerate(curves, start=1):
        plot = figure.add_subplot(1, len(curves), place)
        plot.plot(curve.x, curve.y, marker="o")
        plot.set_xscale("log")
        plot.set_xticks(curve.x, [f"{value:g}" for value in curve.x], rotation=45)
        plot.minorticks_off()
        plot.set_ylim(0, 1.1 * max(curve.y))
        plot.set_xlabel(axis)
        plot.set_title(curve.title)
        plot.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
