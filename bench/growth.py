"""Throughput, p99 of a batch and memory as tasks, batch, history, channels and catalog grow.

Forward and heads run in this process, on one thread, through the store that the device process
uses. The points of an axis are measured alternately and repeatedly, so noise affects all of them
equally. ``--folder`` gets one picture per axis. ``step_AXIS`` is the largest factor by which the
time of a unit of work (a row; a position; a multiplication; an item) grows from one point to the
next. A factor far above 1 is a cliff.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from msgspec.structs import replace

from bench.growth_plots import Curve, save_plot
from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.random_ranking import head_of, random_catalog, ranking_bundle
from bench.report import Report
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.spec import FIRST_ITEM
from peterrec.patches.bundle.verify import (
    BackboneIdentity,
    BundleLimits,
    VerifiedBundle,
    verify_bundle,
)
from peterrec.service.device.slots import LocalBundle, Residency, SlotStore
from peterrec.service.protocol.messages import Row

ROWS, HISTORY, CHANNELS = 128, 50, 64
DISTINCT_BUNDLES = 64
LOADED_AT_ONCE = 64
TOP_K, EXCLUDED = 100, 50
PLAIN_ROW = Row(0, b"")
POINT_S, FEWEST_BATCHES = 0.25, 3


@dataclass(slots=True)
class Point:
    """One value of an axis: the batch to run, and its measured times and memory.

    ``units`` is the work in one row. ``is_separate`` means that the point has its own engine, so
    that its memory is measured from just before the point.
    """

    value: int
    rows: int
    run: Callable[[], object]
    units: float = 1.0
    is_separate: bool = False
    memory_mib: float = 0.0
    seconds: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)

    @property
    def rows_per_s(self) -> float:
        """Rows per second of a median batch."""
        return self.rows / median(self.seconds)

    def unit_s(self) -> list[float]:
        """Seconds per unit of work, one entry per repeat."""
        return [seconds / (self.rows * self.units) for seconds in self.medians]


def main(arguments: list[str]) -> None:
    """``python -m bench growth``."""
    parser = argparse.ArgumentParser(prog="python -m bench growth", description=__doc__)
    parser.add_argument("--axes", nargs="+", default=[*AXES], choices=[*AXES])
    parser.add_argument("--most-tasks", type=int, default=10_000)
    parser.add_argument("--most-items", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/growth"), help="for pictures")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure each chosen axis."""
    torch.set_num_threads(1)
    warm = Engine(FleetShape(1, CHANNELS, items=100))  # compiles the kernels beforehand
    warm.grow(1)
    warm.batch(1, 1)()
    figures: dict[str, float] = {}
    table: list[list[str]] = []
    for axis in options.axes:
        points = _measured(AXES[axis](options), options.repeats)
        figures |= _figures(axis, points)
        table += [
            [axis, str(p.value), f"{p.rows_per_s:.0f}", f"{_p99_ms(p):.2f}", f"{p.memory_mib:.1f}"]
            for p in points
        ]
        save_plot(options.folder / f"{axis}.png", axis, _curves(points))
        gc.collect()
    settings = {**vars(options), "folder": str(options.folder), "threads": 1}
    columns = ("axis", "value", "rows/s", "p99 of a batch, ms", "memory, MiB")
    return Report("growth", figures, settings, columns, table)


def _measured(points: Iterator[Point], repeats: int) -> list[Point]:
    """Make the points in order and record their memory, then measure them alternately."""
    process = psutil.Process()
    first = last = process.memory_info().rss
    made: list[Point] = []
    for point in points:
        point.run()
        now = process.memory_info().rss
        point.memory_mib = (now - (last if point.is_separate else first)) / 2**20
        last = now
        made.append(point)
    for _ in range(repeats):
        for point in made:
            _run_for_a_while(point)
    return made


def _run_for_a_while(point: Point) -> None:
    begun = time.perf_counter()
    batches = 0
    while batches < FEWEST_BATCHES or time.perf_counter() - begun < POINT_S:
        started = time.perf_counter()
        point.run()
        point.seconds.append(time.perf_counter() - started)
        batches += 1
    point.medians.append(median(point.seconds[-batches:]))


def _figures(axis: str, points: Sequence[Point]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for point in points:
        name = f"{axis}_{point.value}"
        figures[f"{name}_rows_per_s"] = point.rows_per_s
        figures[f"{name}_p99_ms"] = _p99_ms(point)
        figures[f"{name}_mib"] = point.memory_mib
    figures[f"step_{axis}"] = max((_step(*pair) for pair in pairwise(points)), default=1.0)
    return figures


def _step(smaller: Point, larger: Point) -> float:
    """Divide a unit's time at the larger value by that at the smaller; return the median."""
    return median(b / a for a, b in zip(smaller.unit_s(), larger.unit_s(), strict=True))


def _p99_ms(point: Point) -> float:
    return float(np.percentile(point.seconds, 99)) * 1000


def _curves(points: Sequence[Point]) -> list[Curve]:
    values = [point.value for point in points]
    return [
        Curve("rows per second", values, [point.rows_per_s for point in points]),
        Curve("p99 of a batch, ms", values, [_p99_ms(point) for point in points]),
        Curve("memory, MiB", values, [point.memory_mib for point in points]),
    ]


class Engine:
    """A slot store with loaded tasks, which makes rows for them."""

    def __init__(self, shape: FleetShape) -> None:
        self.shape = shape
        with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as folder:
            self.loaded: LoadedBackbone = make_backbone(shape, Path(folder))
        self.store = SlotStore(self.loaded.backbone, head_limit_bytes=1 << 34)
        self.tasks: list[Residency] = []
        few = FleetShape(
            min(shape.tasks, DISTINCT_BUNDLES), shape.channels, shape.items, max_len=shape.max_len
        )
        self._bundles = [self.verified(data) for data in make_bundles(few, self.loaded)]
        self._random = np.random.default_rng(0)

    def verified(self, data: bytes) -> VerifiedBundle:
        """Make a verified bundle for the task of this number."""
        identity = BackboneIdentity(self.loaded.fingerprint, self.loaded.backbone.spec)
        return verify_bundle(data, backbone=identity, limits=BundleLimits(max_bytes=len(data)))

    def grow(self, tasks: int) -> None:
        """Load tasks until there are ``tasks``. Each has its own slots; a few bundles repeat."""
        while len(self.tasks) < tasks:
            count = min(LOADED_AT_ONCE, tasks - len(self.tasks))
            some = [self._bundles[i % len(self._bundles)] for i in range(count)]
            for outcome in self.store.load_many([LocalBundle(bundle) for bundle in some]):
                assert isinstance(outcome, Residency), outcome
                self.tasks.append(outcome)

    def rank(self, items: int) -> None:
        """Load a ranking task with a random catalog."""
        head = head_of(random_catalog(items, self.shape.channels))
        bundle = self.verified(ranking_bundle(self.shape, self.loaded, head))
        self.tasks.append(self.store.load(bundle))

    def batch(
        self, rows: int, tasks: int, length: int = HISTORY, row: Row = PLAIN_ROW
    ) -> Callable[[], object]:
        """Return a function that scores rows of one length, for tasks drawn from the first ones.

        ``row`` is the template of each row, with the options of a ranking; its handle and tokens
        are replaced.
        """
        stop = FIRST_ITEM + self.shape.items
        made = [
            replace(
                row,
                handle=self.tasks[task].handle,
                tokens=self._random.integers(FIRST_ITEM, stop, length, dtype=np.int32).tobytes(),
            )
            for task in self._random.integers(0, tasks, rows)
        ]
        return lambda: self.store.score(made)


def _tasks(options: argparse.Namespace) -> Iterator[Point]:
    engine = Engine(FleetShape(options.most_tasks, CHANNELS))
    for tasks in _up_to(options.most_tasks, 1, 10, 100, 1_000, 3_000, 10_000):
        engine.grow(tasks)
        yield Point(tasks, ROWS, engine.batch(ROWS, tasks))


def _batch(options: argparse.Namespace) -> Iterator[Point]:
    engine = Engine(FleetShape(500, CHANNELS))
    engine.grow(500)
    for rows in (1, 4, 16, 64, 256, 1_024):
        yield Point(rows, rows, engine.batch(rows, 500))


def _history(options: argparse.Namespace) -> Iterator[Point]:
    lengths = (1, 5, 10, 25, 50, 100, 200, 400)
    engine = Engine(FleetShape(DISTINCT_BUNDLES, CHANNELS, max_len=max(lengths)))
    engine.grow(DISTINCT_BUNDLES)
    for length in lengths:
        run = engine.batch(ROWS, DISTINCT_BUNDLES, length)
        yield Point(length, ROWS, run, units=length)


def _channels(options: argparse.Namespace) -> Iterator[Point]:
    for channels in (32, 64, 128, 256, 512):
        engine = Engine(FleetShape(DISTINCT_BUNDLES, channels, items=5_000))
        engine.grow(DISTINCT_BUNDLES)
        yield Point(
            channels, 32, engine.batch(32, DISTINCT_BUNDLES), units=channels**2, is_separate=True
        )


def _catalog(options: argparse.Namespace) -> Iterator[Point]:
    row = Row(0, b"", TOP_K, np.arange(EXCLUDED).tobytes())
    for items in _up_to(options.most_items, 1_000, 10_000, 100_000, 1_000_000):
        engine = Engine(FleetShape(1, CHANNELS))
        engine.rank(items)
        run = engine.batch(16, 1, row=row)
        yield Point(items, 16, run, units=items, is_separate=True)


def _up_to(most: int, *values: int) -> list[int]:
    return [value for value in values if value <= most]


AXES: Mapping[str, Callable[[argparse.Namespace], Iterator[Point]]] = {
    "tasks": _tasks,
    "batch": _batch,
    "history": _history,
    "channels": _channels,
    "catalog": _catalog,
}
