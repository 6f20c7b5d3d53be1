"""What explanations cost, and how long a prediction waits beside calls that explain.

One client asks for predictions of short histories without pause, alternately alone, beside clients
that have long histories explained, and beside clients that ask for as many predictions of long
histories in one call as an explanation has rows.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import httpx
import numpy as np

from bench.load import LoadPlan, LoadResult, measure
from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.report import Report
from bench.server import register, serving

PATH = "/tasks/t0/predict"
HEAD_START_S = 0.5
"""Seconds that the other clients run before the client that is measured, and after it."""


def main(arguments: list[str]) -> None:
    """``python -m bench explain``."""
    parser = argparse.ArgumentParser(prog="python -m bench explain", description=__doc__)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--history", type=int, default=50, help="of the client that is measured")
    parser.add_argument("--explained", type=int, default=200, help="items of the others' histories")
    parser.add_argument("--clients", type=int, default=8, help="the others")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--server-cpus", default="0")
    parser.add_argument("--load-cpus", default="1")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure one client alone and beside others, in turns."""
    shape = FleetShape(1, options.channels, max_len=options.explained)
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        folder = Path(scratch) / "backbone"
        bundles = list(make_bundles(shape, make_backbone(shape, folder)))
        data, cpus = Path(scratch) / "data", options.server_cpus
        settings = {"workers": 1, "threads": 1, "request_timeout_ms": 20_000}
        with serving(folder, data, options.port, cpus, **settings) as url:
            register(url, bundles)
            bodies = _bodies(options, shape.items)
            rows, explain_ms = _explained(url, bodies["explaining"])
            others = {
                "alone": None,
                "explaining": bodies["explaining"],
                "rows": _many(bodies, rows),
            }
            found: dict[str, list[LoadResult]] = {name: [] for name in others}
            for _ in range(options.repeats):
                for name, body in others.items():
                    found[name].append(_beside(options, bodies["short"], body))
    figures = {
        "explain_ms": explain_ms,
        "explain_rows": float(rows),
        "explain_impact": _impact(found, "explaining"),
        "rows_impact": _impact(found, "rows"),
        "failed": float(sum(each.failed for results in found.values() for each in results)),
    }
    table = [
        [name, *(f"{median(getattr(r, field) for r in results):.2f}" for field in FIELDS)]
        for name, results in found.items()
    ]
    return Report("explain", figures, vars(options), ("the others", *FIELDS), table)


FIELDS = ("requests_per_s", "p50_ms", "p99_ms")


def _bodies(options: argparse.Namespace, items: int) -> dict[str, str]:
    """The bodies of the client that is measured, and of those that explain."""
    drawn = np.random.default_rng(0).permutation(items)
    short, long = drawn[: options.history].tolist(), drawn[: options.explained].tolist()
    return {
        "short": json.dumps({"history": short}),
        "explaining": json.dumps({"history": long, "parameters": {"explain": 5}}),
    }


def _many(bodies: Mapping[str, str], rows: int) -> str:
    """A call for as many different histories as an explanation has rows."""
    long = json.loads(bodies["explaining"])["history"]
    turned = [{"history": [*long[at:], *long[:at]]} for at in range(min(rows, 256))]
    return json.dumps({"instances": turned})


def _explained(url: str, body: str) -> tuple[int, float]:
    """The rows of one explanation, and its milliseconds on an idle server."""
    times = []
    with httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(10):
            started = time.perf_counter()
            answer = client.post(PATH, content=body)
            times.append(1000 * (time.perf_counter() - started))
    return answer.json()["predictions"][0]["explanation"]["rows"], median(times)


def _beside(options: argparse.Namespace, body: str, others: str | None) -> LoadResult:
    """Measure one client, beside others that send ``others`` without pause."""
    own = LoadPlan("127.0.0.1", options.port, 1, options.seconds, 0.0, [(PATH, body)])
    if others is None:
        return measure(own, options.load_cpus)
    longer = options.seconds + 2 * HEAD_START_S
    noise = LoadPlan("127.0.0.1", options.port, options.clients, longer, 0.0, [(PATH, others)])
    with ThreadPoolExecutor(1) as aside:
        running = aside.submit(measure, noise, options.load_cpus)
        time.sleep(HEAD_START_S)
        found = measure(own, options.load_cpus)
        running.result()
    return found


def _impact(found: Mapping[str, Sequence[LoadResult]], name: str) -> float:
    pairs = zip(found[name], found["alone"], strict=True)
    return median(beside.p99_ms / alone.p99_ms for beside, alone in pairs)
