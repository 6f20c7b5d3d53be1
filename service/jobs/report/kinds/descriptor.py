"""What a kind of head brings for the report of its tasks, and what kinds share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from peterrec.model.training.calibration import Samples, calibration_metrics, reliability
from peterrec.model.training.intervals import Bools, Estimate, Metric
from peterrec.service.jobs.report.measured import MeasuredTask
from peterrec.service.pages.charts import DASHES, MUTED, SERIES, drawing
from peterrec.service.pages.page import Figure, Section, Table, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 50
"""Rows of a table of classes or tags; the other ones are left out, and the table says so."""

Metrics = dict[str, Metric]


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """One user's right answer and the task's, as texts."""

    right: str
    given: str


@dataclass(frozen=True, slots=True)
class KindReport:
    """What is shown of the tasks of one kind.

    ``metrics`` measures predictions by name, as the objective does, the most important first; the
    names of those of which less is better are in ``less_is_better``. ``sections`` are what this
    kind alone has. ``answer`` says the answer to the user at a place of the rows. ``of_groups`` is
    the metric by which groups of users are compared, which may be small; "" is the first one.
    """

    metrics: Callable[[MeasuredTask, Tensor], Metrics]
    sections: Callable[[MeasuredTask], Sequence[Section]]
    answer: Callable[[MeasuredTask, int], SampleAnswer]
    less_is_better: frozenset[str] = frozenset()
    of_groups: str = ""


def within(metric: Metric, members: Bools) -> Metric:
    """A metric of some of the users [N] alone."""
    mask = members.astype(np.float64)
    return Metric(lambda weights: metric.of(weights * mask), metric.cells + len(mask))


def in_words(estimate: Estimate | None) -> str:
    """A metric's value with its interval, such as ``0.76 (0.73 to 0.79)``."""
    if estimate is None or not np.isfinite(estimate.value):
        return "–"
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} ({number(estimate.low)} to {number(estimate.high)})"


def number(value: float) -> str:
    """A metric with three decimals, or four digits where that says more."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.4g}"


def calibration_section(tested: MeasuredTask, samples: Samples, what: str) -> Section:
    """The reliability diagram, and the calibration error without and with the temperature."""
    errors = calibration_metrics(samples, tested.temperature)
    rows = [
        ("without the temperature", errors["ece_uncalibrated"]),
        (f"with the temperature, {tested.temperature:.3f}", errors["ece"]),
        ("by chance, if the probabilities were right", errors["ece_by_chance"]),
    ]
    shown = table(
        "Expected calibration error",
        ("", "error"),
        [(name, number(value)) for name, value in rows],
        f"The mean distance between the probability of {what} and how often it is right, over 15 "
        "ranges of probability. Chance alone gives an error above 0.",
    )
    return Section(
        "Can its probabilities be believed?",
        [_diagram(tested, samples, what), shown, _ranges(tested, samples)],
    )


def _diagram(tested: MeasuredTask, samples: Samples, what: str) -> Figure:
    lines = {
        "without the temperature": reliability(samples),
        "with the temperature": reliability(samples, tested.temperature),
    }

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", label="right")
        for place, (name, ranges) in enumerate(lines.items()):
            x, y = ([each.confidence for each in ranges], [each.accuracy for each in ranges])
            axes.plot(x, y, marker="o", color=SERIES[place], linestyle=DASHES[place], label=name)
        axes.set_xlabel(f"probability of {what}")
        axes.set_ylabel("share that is right")
        axes.legend(frameon=False)

    words = ", ".join(
        f"{each.accuracy:.0%} right at {each.confidence:.0%}"
        for each in lines["with the temperature"]
    )
    return drawing("Reliability", f"With the temperature: {words}.", draw, (5.0, 4.0))


def _ranges(tested: MeasuredTask, samples: Samples) -> Table:
    rows = [
        (
            f"{each.low:.0%} to {each.high:.0%}",
            each.samples,
            number(each.confidence),
            number(each.accuracy),
        )
        for each in reliability(samples, tested.temperature)
    ]
    header = ("probability", "answers", "mean probability", "share right")
    return table("Answers by probability, with the temperature", header, rows)
