"""Draws dashboards from a Prometheus: ``python -m tests.docker.pictures FOLDER [MINUTES] [URL]``.

Without a URL, it makes a scene of so many minutes: a server with callers, and a Prometheus over it.
Grafana's licence does not fit beside this repository, so its pictures are made here: the panels'
own queries over a running Prometheus, in the order and form in which Grafana shows them.
"""

import re
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import numpy as np

from tests.docker.boards import BOARDS, WIDTHS, Board, Panel
from tests.docker.prometheus import Prometheus, filled, prometheus_over
from tests.docker.scene import Scene
from tests.e2e.running import running_server
from tests.service.random_bundles import Workshop

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the choice of what draws
from matplotlib.axes import Axes  # likewise

STEPS = 120
COLUMNS = 24
MOST_LINES = 8
Series = dict[str, Any]  # Any: JSON


def draw(board: Board, prometheus: Prometheus, minutes: float, file: Path) -> None:
    """Draw one dashboard into a PNG file."""
    places, rows = _places(board)
    figure = plt.figure(figsize=(15, 2.3 * rows + 0.8), dpi=72, layout="constrained")
    grid = figure.add_gridspec(rows, COLUMNS)
    figure.suptitle(f"PeterRec: {board.name}", x=0.01, ha="left", fontsize=15, weight="bold")
    for panel, (row, column, width) in zip(board.panels, places, strict=True):
        axes = figure.add_subplot(grid[row, column : column + width])
        axes.set_title(panel.title, loc="left", fontsize=10)
        _DRAW[panel.form](axes, panel, prometheus, minutes)
    figure.savefig(file, metadata={"Software": None})
    plt.close(figure)


def _places(board: Board) -> tuple[list[tuple[int, int, int]], int]:
    """Row, column and width of each panel, and the number of rows."""
    found, row = [], 0
    for panels in board.rows.values():
        column = 0
        for panel in panels:
            width = WIDTHS[panel.form]
            if column + width > COLUMNS:
                row, column = row + 1, 0
            found.append((row, column, width))
            column += width
        row += 1
    return found, row


def _lines(axes: Axes, panel: Panel, prometheus: Prometheus, minutes: float) -> None:
    drawn = 0
    for query in panel.queries:
        for series in _range(prometheus, query.expr, minutes):
            times, values = _points(series)
            name = _named(query.legend, series["metric"])
            if drawn < MOST_LINES:
                axes.plot(times, values, label=name[:34], linewidth=1.1)
            drawn += 1
    axes.set_ylim(bottom=0, top=panel.highest and panel.highest * 1.05)
    axes.yaxis.set_major_formatter(lambda value, _: _text(value, panel.unit))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    if drawn > 0:
        axes.legend(fontsize=6.5, ncols=2, loc="upper left", framealpha=0.6)


def _number(axes: Axes, panel: Panel, prometheus: Prometheus, minutes: float) -> None:
    window = f"{int(minutes * 60)}s"
    found = prometheus.samples(panel.queries[0].expr, window)
    value = float(found[0]["value"][1]) if found else float("nan")
    axes.text(0.5, 0.45, _text(value, panel.unit), ha="center", va="center", fontsize=20)
    axes.set_axis_off()


def _heatmap(axes: Axes, panel: Panel, prometheus: Prometheus, minutes: float) -> None:
    found = {
        float(series["metric"]["le"]): series
        for series in _range(prometheus, panel.queries[0].expr, minutes)
    }
    bounds = sorted(found)
    if not bounds:
        return
    times = sorted({time for series in found.values() for time in _points(series)[0]})
    counts = np.zeros((len(bounds), len(times)))
    for row, bound in enumerate(bounds):
        known = dict(zip(*_points(found[bound]), strict=True))
        counts[row] = [known.get(time, 0.0) for time in times]
    counts[1:] -= counts[:-1].copy()
    axes.imshow(counts, aspect="auto", origin="lower", cmap="YlGnBu", interpolation="nearest")
    step = max(1, len(bounds) // 6)
    axes.set_yticks(range(0, len(bounds), step))
    axes.set_yticklabels([f"{bound:g}" for bound in bounds[::step]], fontsize=7)
    axes.set_xticks([])


def _table(axes: Axes, panel: Panel, prometheus: Prometheus, minutes: float) -> None:
    lines = []
    for series in prometheus.samples(panel.queries[0].expr):
        labels = series["metric"].items()
        named = [value for label, value in sorted(labels) if label not in {"job", "__name__"}]
        lines.append([*named, _text(float(series["value"][1]), panel.unit)])
    axes.set_axis_off()
    for at, line in enumerate(lines[:9]):
        axes.text(0.01, 0.92 - at * 0.11, "    ".join(line), fontsize=8, family="monospace")


_DRAW = {"lines": _lines, "number": _number, "heatmap": _heatmap, "table": _table}


def _range(prometheus: Prometheus, expr: str, minutes: float) -> list[Series]:
    end = time.time()
    found: list[Series] = prometheus.ask(
        "query_range",
        query=filled(expr, window="30s"),
        start=end - minutes * 60,
        end=end,
        step=minutes * 60 / STEPS,
    )["result"]
    return found


def _points(series: Series) -> tuple[list[float], list[float]]:
    """Minutes before now, and the values."""
    now = time.time()
    return (
        [round((float(at) - now) / 60, 2) for at, _ in series["values"]],
        [float(value) for _, value in series["values"]],
    )


def _named(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)


def _text(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value:.2%}" if value < 0.1 or value > 0.99 else f"{value:.0%}"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "bytes":
        return f"{value / 1024:.4g} KiB"
    if unit == "dateTimeAsIso":
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(value / 1000))
    return f"{value:.3g}"


def draw_all(prometheus: Prometheus, minutes: float, folder: Path) -> None:
    """Draw every dashboard into a file of its own."""
    folder.mkdir(exist_ok=True)
    for board in BOARDS:
        draw(board, prometheus, minutes, folder / f"dashboard-{board.name.lower()}.png")


def draw_scene(minutes: float, folder: Path) -> None:
    """Draw a scene: faults after a minute and after four, and at last one user is everybody."""
    with TemporaryDirectory() as scratch:
        workshop = Workshop(Path(scratch) / "backbone")
        with running_server(workshop.folder, Path(scratch) / "server", workers=2) as server:
            scene = Scene(server, workshop)
            scene.prepare()
            with prometheus_over([server], Path(scratch) / "prometheus") as prometheus:
                _play(scene, 60 * minutes)
                draw_all(prometheus, minutes, folder)


def _play(scene: Scene, seconds: float) -> None:
    began, faults = time.monotonic(), [60.0, 240.0]
    while (passed := time.monotonic() - began) < seconds:
        if faults and passed > faults[0]:
            scene.break_things()
            faults.pop(0)
        scene.act(0.6, shift=1.0 if passed > 0.7 * seconds else 0.0)
        time.sleep(0.9)


if __name__ == "__main__":
    target, *rest = sys.argv[1:]
    shown = float(rest[0]) if rest else 5.0
    if rest[1:]:
        draw_all(Prometheus(rest[1]), shown, Path(target))
    else:
        draw_scene(shown, Path(target))
