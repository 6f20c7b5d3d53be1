"""The cost of mixing tasks: rows of different tasks, compared with the same rows of one task.

``table`` is the time of rows with an item table, divided by that of the same rows without: forward
and heads of different tasks.
"""

import argparse
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


def main(arguments: list[str]) -> None:
    """``python -m bench mixed``."""
    parser = argparse.ArgumentParser(prog="python -m bench mixed", description=__doc__)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 128])
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=21)
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure on one thread; all tasks have one geometry and all rows one length."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    rows: list[list[str]] = []
    for channels in options.channels:
        shape = FleetShape(tasks=max(options.rows), channels=channels)
        tasks = resident_tasks(shape, device=options.device)
        heads = ResidentHeads.of(shape, tasks)
        for count in options.rows:
            histories = random_histories(shape, np.full(count, options.history))
            forward, refs = tasks.forward.user_vectors, tasks.refs
            seconds = paired_seconds(
                {
                    "one": partial(forward, histories, refs[:1] * count),
                    "mixed": partial(forward, histories, refs[:count]),
                },
                options.repeats,
            )
            name = f"mixed_{count}_c{channels}"
            figures[name] = paired_ratio(seconds, "one", "mixed")
            rates = [f"{count / median(seconds[side]):.0f}" for side in ("mixed", "one")]
            tables = heads.table_cost(range(count), histories, options.repeats)
            cost = figures[f"table_{count}_c{channels}"] = paired_ratio(tables, "with", "without")
            rows.append([str(channels), str(count), *rates, f"{figures[name]:.3f}", f"{cost:.3f}"])
    columns = (
        "channels", "rows", "rows/s, all tasks different", "rows/s, one task", "ratio", "table"
    )  # fmt: skip
    return Report("mixed", figures, {**vars(options), "threads": 1}, columns, rows)
