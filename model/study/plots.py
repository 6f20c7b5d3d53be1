"""Pictures of a comparison: quality over epochs, over bytes, and over patched blocks.

Matplotlib draws them (decision 0032: why not seaborn).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from peterrec.model.disk import file_in_one_step
from peterrec.model.study.baselines import PRIORS
from peterrec.model.study.results import Report, Row, Table
from peterrec.model.study.verdict import PATCHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")

MARKS = "osv^Dx*P<>"
"""Matplotlib markers, of which every family of methods has one."""


def draw_plots(report: Report, folder: Path) -> list[Path]:
    """Write every picture that the tables have points for, as PNG and SVG; return the paths."""
    written = []
    for table in report["tables"]:
        for name, figure in _figures(table):
            for suffix in FORMATS:
                path = folder / f"{table['data_set']}-{table['task']}-{name}.{suffix}"
                with file_in_one_step(path) as partial:
                    figure.savefig(partial, format=suffix, dpi=150, metadata=_undated(suffix))
                written.append(path)
    return written


def _undated(suffix: str) -> dict[str, str | None]:
    """Metadata without a date, so that equal data give equal files."""
    return {"Date": None} if suffix == "svg" else {}


def _figures(table: Table) -> "Iterator[tuple[str, Figure]]":
    learned = [row for row in table["rows"] if "trained_parameters" in row]
    trained = [row for row in learned if "curve" in row]
    if trained:
        yield "epochs", _epochs(table, trained)
    if learned:
        yield "bytes", _bytes(table, learned)
    depths = [row for row in trained if row["family"] in PATCHED]
    if len({str(row["depth"]) for row in depths}) > 1:
        yield "depth", _depth(table, depths)


def _axes(table: Table, x_label: str) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(str(table["primary"]))
    axes.set_title(f"{table['data_set']}: {table['task']}")
    axes.grid(alpha=0.3)
    return figure, axes


def _epochs(table: Table, rows: list[Row]) -> "Figure":
    """The primary metric of the validation users after each epoch."""
    figure, axes = _axes(table, "epoch (validation users)")
    for row in rows:
        points = [point for point in row["curve"] if table["primary"] in point]
        axes.plot(
            [point["epoch"] for point in points],
            [point[table["primary"]] for point in points],
            label=row["method"],
            marker=_mark(row),
            markersize=4,
        )
    axes.legend(fontsize="small")
    return figure


def _bytes(table: Table, rows: list[Row]) -> "Figure":
    """The primary metric of the test users over what a task adds to what all tasks share."""
    figure, axes = _axes(table, "KB of a task")
    for row in rows:
        metric = row["metrics"][table["primary"]]
        axes.errorbar(
            row["size_bytes"] / 1000,
            metric["mean"],
            yerr=metric["std"] or 0,
            label=row["method"],
            marker=_mark(row),
            capsize=3,
            linestyle="none",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    _prior_line(table, axes)
    axes.legend(fontsize="small")
    return figure


def _depth(table: Table, rows: list[Row]) -> "Figure":
    """The primary metric of the test users over the patched top blocks, for each width."""
    figure, axes = _axes(table, "patched top blocks")
    curves: dict[str, list[Row]] = {}
    for row in rows:
        curves.setdefault(_curve_name(row), []).append(row)
    names = sorted({str(row["depth"]) for row in rows}, key=_depth_order)
    for label, own in curves.items():
        own.sort(key=lambda row: _depth_order(str(row["depth"])))
        metrics = [row["metrics"][table["primary"]] for row in own]
        axes.errorbar(
            [names.index(str(row["depth"])) for row in own],
            [metric["mean"] for metric in metrics],
            yerr=[metric["std"] or 0 for metric in metrics],
            label=label,
            marker="o",
            capsize=3,
        )
    axes.set_xticks(range(len(names)), names)
    _prior_line(table, axes)
    axes.legend(fontsize="small")
    return figure


def _curve_name(row: Row) -> str:
    """The properties that all points of one line of the depth picture share."""
    said = [row["insertion"] or row["family"], f"bottleneck {row['bottleneck']}"]
    said += [f"queries {row['queries']}"] if row["queries"] else []
    said += [f"cardinality {row['cardinality']}"] if row["cardinality"] > 1 else []
    said += [f"trains {row['extras']}"] if row["extras"] != "auto" else []
    said += [f"labels {row['label_share']:.0%}"] if row["label_share"] < 1 else []
    return ", ".join(said + ([] if row["is_causal"] else ["non-causal"]))


def _depth_order(depth: str) -> tuple[int, int]:
    return {"side": (0, 0), "none": (0, 1), "all": (2, 0)}.get(depth) or (1, int(depth))


def _prior_line(table: Table, axes: "Axes") -> None:
    for row in table["rows"]:
        if row["family"] in PRIORS and row["label_share"] == 1:
            value = row["metrics"][table["primary"]]["mean"]
            axes.axhline(value, color="grey", linestyle=":", label="no history (prior)")


def _mark(row: Row) -> str:
    return MARKS[sum(map(ord, row["family"])) % len(MARKS)]
