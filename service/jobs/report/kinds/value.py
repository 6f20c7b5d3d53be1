"""The report of a task that answers with a number: predicted and right ones, and the errors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from peterrec.model.training.intervals import (
    Floats,
    estimates,
    explained_share_of,
    mean_of,
    root_mean_of,
)
from peterrec.service.jobs.report.kinds.descriptor import (
    KindReport,
    Metrics,
    SampleAnswer,
    in_words,
    within,
)
from peterrec.service.jobs.report.measured import MeasuredTask
from peterrec.service.pages.charts import MUTED, SERIES, drawing, histogram
from peterrec.service.pages.page import Figure, Section, Table, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 1000
"""Users of a drawing of single users; of more, evenly spaced ones."""

GROUPS = 4
"""Groups of equally many users, by the right number."""


def targets_of(tested: MeasuredTask) -> Floats:
    """The right number [N] of each measured user."""
    return np.array([float(answer[0]) for answer in tested.answers])


def _errors(tested: MeasuredTask, predictions: Tensor) -> Floats:
    errors: Floats = predictions.double().numpy().reshape(-1) - targets_of(tested)
    return errors


def _metrics(tested: MeasuredTask, predictions: Tensor) -> Metrics:
    errors = _errors(tested, predictions)
    return {
        "r2": explained_share_of(errors, targets_of(tested)),
        "rmse": root_mean_of(errors**2),
        "mae": mean_of(np.abs(errors)),
    }


def _sections(tested: MeasuredTask) -> Sequence[Section]:
    errors = _errors(tested, tested.predictions)
    residuals = histogram("Errors", errors, "predicted minus right number")
    return [
        Section("Predicted and right numbers", [_points(tested), residuals]),
        Section("By size of the right number", [_by_size(tested)]),
    ]


def _points(tested: MeasuredTask) -> Figure:
    right, errors = targets_of(tested), _errors(tested, tested.predictions)
    at = np.unique(np.linspace(0, len(right) - 1, MOST_POINTS).astype(int))
    ends = [float(right.min()), float(right.max())]

    def draw(axes: "Axes") -> None:
        axes.plot(ends, ends, color=MUTED, linestyle=":", label="right")
        axes.scatter(right[at], (right + errors)[at], s=9, color=SERIES[0], label="a user")
        axes.set_xlabel("right number")
        axes.set_ylabel("predicted")
        axes.legend(frameon=False)

    words = f"{len(at)} users; right numbers from {ends[0]:,.6g} to {ends[1]:,.6g}."
    return drawing("Predicted and right numbers", words, draw, (5.0, 4.0))


def _by_size(tested: MeasuredTask) -> Table:
    right, errors = targets_of(tested), _errors(tested, tested.predictions)
    edges = np.quantile(right, np.linspace(0, 1, GROUPS + 1))
    groups = np.clip(np.searchsorted(edges, right, side="right") - 1, 0, GROUPS - 1)
    size, bias = mean_of(np.abs(errors)), mean_of(errors)
    metrics = {
        f"{name}{group}": within(metric, groups == group)
        for name, metric in (("mae", size), ("bias", bias))
        for group in range(GROUPS)
    }
    found = estimates(metrics, len(right))
    rows = [
        (
            f"{right[groups == group].min():,.6g} to {right[groups == group].max():,.6g}",
            int((groups == group).sum()),
            in_words(found[f"mae{group}"]),
            in_words(found[f"bias{group}"]),
        )
        for group in range(GROUPS)
        if (groups == group).any()
    ]
    header = ("right number", "users", "mean absolute error", "mean error")
    return table("Users in groups of equal size", header, rows)


def _answer(tested: MeasuredTask, at: int) -> SampleAnswer:
    return SampleAnswer(tested.answers[at][0], f"{float(tested.predictions[at, 0]):,.6g}")


KIND = KindReport(
    _metrics, _sections, _answer, less_is_better=frozenset({"rmse", "mae"}), of_groups="mae"
)
