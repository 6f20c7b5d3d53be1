"""The picture of what pretraining does: task quality over next-item NDCG, a panel for each task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TypedDict

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

METRICS = {"gender": "accuracy", "age": "accuracy", "first-items": "mrr@5"}
"""What is shown of each task."""

MARKS = "osv^"

COLUMNS = 2
"""Panels beside each other."""


class Result(TypedDict):
    """One line of the results: corpus, recipe, task, form and seed, and its figures."""

    job: list[str | int]
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Point:
    """A recipe's backbone and the mean over seeds of one task above it, with their spread."""

    corpus: str
    recipe: str
    task: str
    form: str
    ndcg: float
    hit_rate: float
    value: float
    spread: float

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """NDCG and hit rate of next items, the task's metric and its spread over seeds."""
        return self.ndcg, self.hit_rate, self.value, self.spread

    @property
    def what(self) -> str:
        """The task, what is trained above the backbone, and the metric."""
        return f"{self.task}, {self.form}, {METRICS[self.task]}"


def points_of(results: Sequence[Result]) -> Iterator[Point]:
    """The points of all results, in the order of the first measurement of each."""
    backbones = {tuple(r["job"][:2]): r["figures"] for r in results if not r["job"][2]}
    values = dict[tuple[str, ...], list[float]]()
    for result in results:
        corpus, recipe, task, form, _ = map(str, result["job"])
        if task:
            metric = result["figures"][METRICS[task]]
            values.setdefault((corpus, recipe, task, form), []).append(metric)
    for (corpus, recipe, task, form), found in values.items():
        own = backbones[corpus, recipe]
        quality = own["test ndcg@10"], own["test hr@10"]
        spread = stdev(found) if len(found) > 1 else 0.0
        yield Point(corpus, recipe, task, form, *quality, mean(found), spread)


def draw(results: Sequence[Result], folder: Path) -> None:
    """Write ``pretraining.png``: a panel for each task, a mark for each backbone and form."""
    points = list(points_of(results))
    panels = list(dict.fromkeys((point.corpus, point.task) for point in points))
    if not panels:
        return
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(5.5 * COLUMNS, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(every, panels, strict=False):
        own = [point for point in points if (point.corpus, point.task) == panel]
        _draw_panel(axes, own)
        axes.set_title(", ".join(panel))
        axes.set_ylabel(METRICS[panel[1]])
    figure.savefig(folder / "pretraining.png", dpi=100)


def _draw_panel(axes: Axes, points: Sequence[Point]) -> None:
    """One task: marks with the spread over seeds; the best mark of a backbone has its name."""
    axes.set_xlabel("next item of the test, NDCG@10")
    for form, mark in zip(dict.fromkeys(point.form for point in points), MARKS, strict=False):
        own = [point for point in points if point.form == form]
        x, y, spread = ([getattr(p, name) for p in own] for name in ("ndcg", "value", "spread"))
        axes.errorbar(x, y, spread, marker=mark, linestyle="none", label=form, alpha=0.8)
    for recipe in dict.fromkeys(point.recipe for point in points):
        top = max((p for p in points if p.recipe == recipe), key=lambda p: p.value)
        axes.annotate(recipe, (top.ndcg, top.value), (3, 4), textcoords="offset points", fontsize=8)
    axes.margins(0.12)
    axes.legend(loc="lower right", fontsize=8)
