"""The cost of additional registered tasks: 10,000 tasks, asked uniformly, compared with one.

Two services run, one of them with a single task. They are loaded alternately, so other load on the
machine affects both equally.
"""

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

from bench.load import LoadPlan, LoadResult, measure
from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.report import Report
from bench.server import register, serving

DRAWS = 4096


def main(arguments: list[str]) -> None:
    """``python -m bench tasks``."""
    parser = argparse.ArgumentParser(prog="python -m bench tasks", description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds per window")
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--port", type=int, default=8100, help="first of two ports")
    parser.add_argument("--server-cpus", default="0")
    parser.add_argument("--load-cpus", default="1")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Start both services, register their tasks, and load them alternately."""
    many = FleetShape(options.tasks, options.channels)
    results: dict[int, list[LoadResult]] = {1: [], options.tasks: []}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peterrec-bench-")))
        loaded = make_backbone(many, scratch / "backbone")
        for at, tasks in enumerate(results):
            shape = FleetShape(tasks, options.channels)
            url = stack.enter_context(
                serving(
                    scratch / "backbone",
                    scratch / f"data-{tasks}",
                    options.port + at,
                    options.server_cpus,
                    workers=1,
                    threads=1,
                )
            )
            register_s = register(url, make_bundles(shape, loaded))
        for _ in range(options.windows):
            for at, tasks in enumerate(results):
                plan = _plan(options, options.port + at, tasks)
                results[tasks].append(measure(plan, options.load_cpus))
    one, all_tasks = results[1], results[options.tasks]
    name = f"tasks_{options.tasks // 1000}k"
    figures = {
        name: median(
            a.requests_per_s / b.requests_per_s for a, b in zip(all_tasks, one, strict=True)
        ),
        f"{name}_p99": median(a.p99_ms / b.p99_ms for a, b in zip(all_tasks, one, strict=True)),
        "register_per_s": options.tasks / register_s,
        "failed": float(sum(result.failed for result in [*one, *all_tasks])),
    }
    rows = [
        [
            str(tasks),
            f"{median(r.requests_per_s for r in found):.0f}",
            f"{median(r.p50_ms for r in found):.2f}",
            f"{median(r.p99_ms for r in found):.2f}",
        ]
        for tasks, found in results.items()
    ]
    columns = ("tasks", "requests/s", "p50 ms", "p99 ms")
    return Report("tasks", figures, vars(options), columns, rows)


def _plan(options: argparse.Namespace, port: int, tasks: int) -> LoadPlan:
    random = np.random.default_rng(tasks)
    items = FleetShape().items
    bodies = [
        (
            f"/tasks/t{random.integers(tasks)}/predict",
            json.dumps({"history": random.integers(0, items, options.history).tolist()}),
        )
        for _ in range(DRAWS)
    ]
    return LoadPlan("127.0.0.1", port, options.clients, options.seconds, 1.0, bodies)
