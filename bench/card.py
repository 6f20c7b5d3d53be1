"""Many tasks for one user: the cost of a hundred tasks for one history, and of repeated histories.

``trunk_cache`` is the time of a task with patches in the top two blocks when the history's
activations are cached (from another task), divided by the time when they are not.
``trunk_cache_reader`` is this ratio for a task that has only a history reader. ``card_table`` is
the time of all tasks for one history, forward and heads, when each has an item table, divided by
the time without tables.
"""

import argparse
import time
from functools import partial
from statistics import median

import numpy as np
import torch

from bench.forward_fixture import (
    ResidentHeads,
    paired_ratio,
    paired_seconds,
    random_histories,
    resident_tasks,
)
from bench.random_fleet import FleetShape
from bench.report import Report

PLACES: dict[str, tuple[tuple[int, ...], int]] = {
    "all": (tuple(range(8)), 0),
    "top4": ((4, 5, 6, 7), 0),
    "top2": ((6, 7), 0),
    "top1": ((7,), 0),
    "reader": ((), 8),
}
"""Patched blocks and number of queries of the history reader, by the name of the patch."""


def main(arguments: list[str]) -> None:
    """``python -m bench card``."""
    parser = argparse.ArgumentParser(prog="python -m bench card", description=__doc__)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=21)
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure each patch of ``PLACES`` on one thread: one task, and many tasks for one history."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    rows: list[list[str]] = []
    for place, (blocks, queries) in PLACES.items():
        shape = FleetShape(options.tasks, options.channels, blocks=blocks, queries=queries)
        tasks = resident_tasks(shape)
        history = random_histories(shape, np.array([options.history]))
        forward, refs = tasks.forward.user_vectors, tasks.refs
        seconds = paired_seconds(
            {
                "one": partial(forward, history, refs[:1]),
                "card": partial(forward, history * options.tasks, refs),
            },
            options.repeats,
        )
        name = f"card_{options.tasks}_{place}"
        figures[name] = paired_ratio(seconds, "card", "one")
        times = [f"{1000 * median(seconds[side]):.2f}" for side in ("one", "card")]
        tables = ResidentHeads.of(shape, tasks).table_cost(
            range(options.tasks), history * options.tasks, options.repeats
        )
        cost = figures[f"card_table_{place}"] = paired_ratio(tables, "with", "without")
        rows.append([place, *times, f"{figures[name]:.1f}", f"{cost:.3f}"])
    figures["trunk_cache"] = _trunk_cache(options, "top2")
    figures["trunk_cache_reader"] = _trunk_cache(options, "reader")
    columns = ("patch", "one task, ms", f"{options.tasks} tasks, ms", "ratio", "table")
    return Report("card", figures, {**vars(options), "threads": 1}, columns, rows)


def _trunk_cache(options: argparse.Namespace, place: str) -> float:
    """Divide the time of the second request for a history by that of the first.

    Each repeat uses a new history.
    """
    blocks, queries = PLACES[place]
    shape = FleetShape(2, options.channels, blocks=blocks, queries=queries)
    tasks = resident_tasks(shape, trunk_cache_bytes=1 << 26)
    lengths = np.full(10 * options.repeats + 1, options.history)
    seconds: dict[str, list[float]] = {"fresh": [], "known": []}
    for history in random_histories(shape, lengths):
        for ref, name in zip(tasks.refs, seconds, strict=True):
            started = time.perf_counter()
            tasks.forward.user_vectors([history], [ref])
            seconds[name].append(time.perf_counter() - started)
    return paired_ratio(seconds, "known", "fresh")
