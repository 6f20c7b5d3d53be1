"""The picture of what pretraining does: task quality over next-item NDCG, a panel for each task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TypedDict

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

METRICS = {"gender": "accuracy", "age": "accuracy", "first-items": "mrr@5"}
"""What is shown of each task."""

MARKS = "osv^"


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
    """Write ``pretraining.png``."""
    points = list(points_of(results))
    panels = list(dict.fromkeys((point.corpus, point.task) for point in points))
    if not panels:
        return
    figure = Figure(figsize=(5.2 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        own = [point for point in points if (point.corpus, point.task) == panel]
        axes.set_title(", ".join(panel))
        axes.set_xlabel("next item, NDCG@10")
        axes.set_ylabel(METRICS[panel[1]])
        for form, mark in zip(dict.fromkeys(point.form for point in own), MARKS, strict=False):
            chosen = sorted((p for p in own if p.form == form), key=lambda p: p.ndcg)
            across, up = [p.ndcg for p in chosen], [p.value for p in chosen]
            axes.errorbar(across, up, [p.spread for p in chosen], marker=mark, label=form)
        for point in (p for p in own if p.form == own[0].form):
            axes.annotate(point.recipe, (point.ndcg, point.value), fontsize=7, rotation=20)
        axes.legend()
    figure.savefig(folder / "pretraining.png", dpi=120)
