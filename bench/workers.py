"""What a second worker adds: requests per second with two workers, divided by those with one.

Both servers have the same tasks and the same cores, and are asked in turns by two load generators.
It says something where each process has a core: with fewer cores than workers, the device process
and two generators need together, they take each other's time.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from bench.edge import random_bodies
from bench.load import LoadPlan, measure
from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.report import Report
from bench.server import register, serving

WORKERS = (1, 2)
GENERATORS = 2


def main(arguments: list[str]) -> None:
    """``python -m bench workers``."""
    cores = os.cpu_count() or 2
    parser = argparse.ArgumentParser(prog="python -m bench workers", description=__doc__)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--history", type=int, default=50, help="items per history")
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of a window")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--port", type=int, default=8130, help="and the one above it")
    parser.add_argument("--server-cpus", default=f"0-{cores // 2 - 1}")
    parser.add_argument("--load-cpus", default=f"{cores // 2}-{cores - 1}")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Start both servers and ask them in turns."""
    shape = FleetShape(options.tasks, options.channels, options.items)
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        bundles = list(make_bundles(shape, make_backbone(shape, folder / "backbone")))
        ports = [stack.enter_context(_server(options, folder, count)) for count in WORKERS]
        for port in ports:
            register(f"http://127.0.0.1:{port}", bundles)
        turns = [[_rate(options, shape, port) for port in ports] for _ in range(options.turns)]
    ratios = [two / one for one, two in turns]
    figures = {
        "two_workers_vs_one": median(ratios),
        "rate_of_one": median(one for one, _ in turns),
        "rate_of_two": median(two for _, two in turns),
    }
    rows = [[f"{one:.0f}", f"{two:.0f}", f"{two / one:.3f}"] for one, two in turns]
    return Report("workers", figures, vars(options), ("one", "two", "ratio"), rows)


@contextmanager
def _server(options: argparse.Namespace, folder: Path, workers: int) -> Iterator[int]:
    port, data = options.port + workers - 1, folder / f"data-{workers}"
    settings = {"device": options.device, "precision": options.precision, "workers": workers}
    with serving(folder / "backbone", data, port, options.server_cpus, **settings):
        yield port


def _rate(options: argparse.Namespace, shape: FleetShape, port: int) -> float:
    """Requests per second of two load generators together."""
    bodies = random_bodies(options, shape)
    clients = options.clients // GENERATORS
    plan = LoadPlan("127.0.0.1", port, clients, options.seconds, 0.5, bodies)
    with ThreadPoolExecutor(GENERATORS) as generators:
        results = list(
            generators.map(lambda _: measure(plan, options.load_cpus), range(GENERATORS))
        )
    failed = sum(result.failed for result in results)
    if failed:
        raise SystemExit(f"{failed} requests failed")
    return sum(result.requests_per_s for result in results)
