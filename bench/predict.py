"""End to end over HTTP: requests per second and latency at several numbers of clients."""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from bench.load import LoadPlan, LoadResult, measure
from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.report import Report
from bench.server import register, serving

DRAWS = 2048
"""Different requests that the clients send in turn."""


def main(arguments: list[str]) -> None:
    """``python -m bench predict``."""
    parser = argparse.ArgumentParser(prog="python -m bench predict", description=__doc__)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--history", type=int, default=50, help="items per history")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds per number of clients")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--server-cpus", default=None, help="cores of the server, such as 0")
    parser.add_argument("--load-cpus", default=None, help="cores of the load generator, such as 1")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Start the service, register the tasks, and measure it under load."""
    shape = FleetShape(options.tasks, options.channels, options.items)
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        folder = Path(scratch) / "backbone"
        loaded = make_backbone(shape, folder)
        with serving(
            folder, Path(scratch) / "data", options.port, options.server_cpus, workers=1
        ) as url:
            register_s = register(url, make_bundles(shape, loaded))
            results = {
                clients: measure(_plan(options, shape, clients), options.load_cpus)
                for clients in options.clients
            }
    failed = sum(result.failed for result in results.values())
    figures = {
        "register_per_s": shape.tasks / register_s,
        "failed": float(failed),
        **{
            f"{name}_{clients}": value
            for clients, result in results.items()
            for name, value in _figures(result).items()
        },
    }
    settings = {name: value for name, value in vars(options).items() if value is not None}
    return Report(
        name="predict",
        figures=figures,
        settings=settings,
        columns=("clients", "requests/s", "p50 ms", "p90 ms", "p99 ms", "failed"),
        rows=[_row(clients, result) for clients, result in results.items()],
    )


def _plan(options: argparse.Namespace, shape: FleetShape, clients: int) -> LoadPlan:
    random = np.random.default_rng(clients)
    bodies = [
        (
            f"/tasks/t{random.integers(shape.tasks)}/predict",
            json.dumps({"history": random.integers(0, shape.items, options.history).tolist()}),
        )
        for _ in range(DRAWS)
    ]
    return LoadPlan("127.0.0.1", options.port, clients, options.seconds, 1.0, bodies)


def _figures(result: LoadResult) -> dict[str, float]:
    return {
        "requests_per_s": result.requests_per_s,
        "p50_ms": result.p50_ms,
        "p99_ms": result.p99_ms,
    }


def _row(clients: int, result: LoadResult) -> list[str]:
    return [
        str(clients),
        f"{result.requests_per_s:.0f}",
        f"{result.p50_ms:.2f}",
        f"{result.p90_ms:.2f}",
        f"{result.p99_ms:.2f}",
        str(result.failed),
    ]
