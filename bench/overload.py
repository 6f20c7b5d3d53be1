"""Goodput under overload: rows answered per second, compared with the most that the server gives.

Closed-loop clients send calls of 1, 64 and 256 rows. The best rate is that of the best number of
clients. Overload is a multiple of the clients that fill the queue; refused ones try again at once,
or when ``Retry-After`` says. Numbers of clients take turns, and each ratio is the median over turns
that compare two of them.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from bench.load import LoadPlan, LoadResult, measure
from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.report import Report
from bench.server import register, serving_process, wait_until_ready

MOST_CLIENTS = 128
"""Clients that count as a full load, if the queue would take more calls of one row."""

BODY_BYTES = 16 << 20
"""Bytes of different bodies of one size of calls."""


def main(arguments: list[str]) -> None:
    """``python -m bench overload``."""
    parser = argparse.ArgumentParser(prog="python -m bench overload", description=__doc__)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--history", type=int, default=50, help="items per history")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256], help="rows per call")
    parser.add_argument("--factors", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--best", type=int, nargs="+", default=[8, 32], help="clients of the best")
    parser.add_argument("--queue", type=int, default=8192, help="PETERREC_MAX_QUEUE_ROWS")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--server-cpus", default="0")
    parser.add_argument("--load-cpus", default="1")
    run(parser.parse_args(arguments)).show()


@dataclass(frozen=True, slots=True)
class Measured:
    """A run of the load, and the CPU time that the server's processes spent meanwhile."""

    load: LoadResult
    cpu_s: float

    @property
    def answered_per_s(self) -> float:
        """Calls answered with 200 per second."""
        return self.load.answered_per_s

    @property
    def answered_per_cpu_s(self) -> float:
        """Calls answered with 200 per second of CPU time: others on the machine matter less."""
        return self.load.answered / self.cpu_s


@dataclass(frozen=True, slots=True)
class Side:
    """Clients that are compared: how many, and whether refused ones wait."""

    name: str
    clients: int
    waits: bool = False


def run(options: argparse.Namespace) -> Report:
    """Start the service and measure every size of calls."""
    shape = FleetShape(options.tasks, options.channels, options.items)
    figures: dict[str, float] = {}
    table: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        folder = Path(scratch) / "backbone"
        loaded = make_backbone(shape, folder)
        settings = {"workers": 1, "threads": 1, "max_queue_rows": options.queue}
        data, cpus = Path(scratch) / "data", options.server_cpus
        with serving_process(folder, data, options.port, cpus, **settings) as process:
            url = f"http://127.0.0.1:{options.port}"
            wait_until_ready(url, process)
            register(url, make_bundles(shape, loaded))
            for rows in options.rows:
                found = _measure(options, shape, rows, process.pid)
                figures |= _figures(rows, found)
                table += [_row(rows, *pair) for pair in found.items()]
    columns = (
        "rows", "clients", "rows/s", "p99 ms", "refused/s", "refusal p50 ms", "p99 ms", "failed",
    )  # fmt: skip
    return Report("overload", figures, vars(options), columns, table)


def _sides(options: argparse.Namespace, rows: int) -> list[Side]:
    full = min(options.queue // rows, MOST_CLIENTS)
    best = [Side(f"best_{count}", count) for count in options.best]
    return best + [
        Side(f"{factor}x{'_waits' * waits}", factor * full, waits)
        for factor in options.factors
        for waits in (False, True)
    ]


def _measure(
    options: argparse.Namespace, shape: FleetShape, rows: int, pid: int
) -> dict[Side, list[Measured]]:
    bodies = _bodies(options, shape, rows)
    sides = _sides(options, rows)
    found: dict[Side, list[Measured]] = {side: [] for side in sides}
    for _ in range(options.turns):
        for side in sides:
            plan = LoadPlan(
                "127.0.0.1",
                options.port,
                side.clients,
                options.seconds,
                1.0,
                bodies,
                honours_retry_after=side.waits,
            )
            before_s = _cpu_s(pid)
            load = measure(plan, options.load_cpus)
            found[side].append(Measured(load, _cpu_s(pid) - before_s))
    return found


def _cpu_s(pid: int) -> float:
    """Return the CPU time that the server's processes have spent."""
    server = psutil.Process(pid)
    times = [each.cpu_times() for each in (server, *server.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _bodies(options: argparse.Namespace, shape: FleetShape, rows: int) -> list[tuple[str, str]]:
    random = np.random.default_rng(rows)
    size = rows * options.history * 7
    return [
        (
            f"/tasks/t{random.integers(shape.tasks)}/predict",
            _body(random.integers(0, shape.items, (rows, options.history)).tolist()),
        )
        for _ in range(max(8, min(1024, BODY_BYTES // size)))
    ]


def _body(histories: Sequence[Sequence[int]]) -> str:
    if len(histories) == 1:
        return json.dumps({"history": histories[0]})
    return json.dumps({"instances": [{"history": history} for history in histories]})


def _figures(rows: int, found: Mapping[Side, Sequence[Measured]]) -> dict[str, float]:
    turns = list(zip(*found.values(), strict=True))
    is_best = ["best" in side.name for side in found]
    best = [max(compress(turn, is_best), key=lambda each: each.answered_per_s) for turn in turns]
    figures = {f"best_rows_per_s_{rows}": rows * median(each.answered_per_s for each in best)}
    for side, results in found.items():
        if "best" in side.name:
            continue
        pairs = list(zip(results, best, strict=True))
        name = f"{side.name}_{rows}"
        figures[f"goodput_{name}"] = median(a.answered_per_s / b.answered_per_s for a, b in pairs)
        figures[f"per_cpu_{name}"] = median(
            a.answered_per_cpu_s / b.answered_per_cpu_s for a, b in pairs
        )
        figures[f"refusal_ms_{name}"] = median(each.load.refused_p50_ms for each in results)
    return figures


def _row(rows: int, side: Side, measured: Sequence[Measured]) -> list[str]:
    results = [each.load for each in measured]
    return [
        str(rows),
        f"{side.name} ({side.clients})",
        f"{rows * median(each.answered_per_s for each in results):.0f}",
        f"{median(each.p99_ms for each in results):.1f}",
        f"{median(each.refused / each.seconds for each in results):.0f}",
        f"{median(each.refused_p50_ms for each in results):.2f}",
        f"{median(each.refused_p99_ms for each in results):.2f}",
        str(sum(each.failed - each.refused for each in results)),
    ]
