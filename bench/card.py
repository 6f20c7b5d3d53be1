"""One user, many tasks: what a hundred tasks for one history cost against one task."""

import argparse
from functools import partial
from statistics import median

import numpy as np
import torch

from bench.forward_fixture import paired_ratio, paired_seconds, random_histories, resident_tasks
from bench.random_fleet import FleetShape
from bench.report import Report

DEPTHS = {"all": tuple(range(8)), "top4": (4, 5, 6, 7), "top2": (6, 7), "top1": (7,)}


def main(arguments: list[str]) -> None:
    """``python -m bench card``."""
    parser = argparse.ArgumentParser(prog="python -m bench card", description=__doc__)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=21)
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """One thread, patches in all blocks or in the top ones only."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    rows: list[list[str]] = []
    for depth, blocks in DEPTHS.items():
        shape = FleetShape(options.tasks, options.channels, blocks=blocks)
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
        name = f"card_{options.tasks}_{depth}"
        figures[name] = paired_ratio(seconds, "card", "one")
        times = [f"{1000 * median(seconds[side]):.2f}" for side in ("one", "card")]
        rows.append([depth, *times, f"{figures[name]:.1f}"])
    columns = ("patched blocks", "one task, ms", f"{options.tasks} tasks, ms", "ratio")
    return Report("card", figures, {**vars(options), "threads": 1}, columns, rows)
