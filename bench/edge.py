"""What a prediction costs around the forward, beside a server that only returns the body.

Both servers run on one core with one worker, with the same requests, in turns: many clients, then
one. Our server has keys and a limit of requests per second. ``worker`` is the processor time of our
worker for a request ÷ that of the echo; ``device`` that of the device process ÷ that of the bare
forward and heads for batches of the same size, in process, on the same core.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import torch

from bench.forward_fixture import ResidentHeads, random_histories, resident_tasks
from bench.load import LoadPlan, LoadResult, measure
from bench.processes import child, cpu_seconds
from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.report import Report
from bench.server import register, serving, serving_process, wait_until_ready
from peterrec.model.inference.heads import Selection

DRAWS = 2048
"""Different requests that the clients send in turn."""

RATE_LIMIT = 1_000_000
"""Requests per second: a limit that is looked at and never reached."""

FORWARDS = 30
"""Batches of the bare forward in one turn."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One window of each side.

    Rates are requests per second; times are microseconds of processor time per request, of the
    bare forward per row; ``p50`` are milliseconds of a client that is alone.
    """

    rate: float
    echo_rate: float
    worker_us: float
    device_us: float
    echo_us: float
    forward_us: float
    p50_ms: float
    echo_p50_ms: float
    batch_rows: float


RATIOS: dict[str, Callable[[Turn], float]] = {
    "rate_vs_echo": lambda turn: turn.rate / turn.echo_rate,
    "worker_vs_echo": lambda turn: turn.worker_us / turn.echo_us,
    "device_vs_forward": lambda turn: turn.device_us / turn.forward_us,
    "p50_vs_echo": lambda turn: turn.p50_ms / turn.echo_p50_ms,
}


def main(arguments: list[str]) -> None:
    """``python -m bench edge``."""
    parser = argparse.ArgumentParser(prog="python -m bench edge", description=__doc__)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--history", type=int, default=50, help="items per history")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of a window")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--port", type=int, default=8100, help="and the one above it")
    parser.add_argument("--server-cpus", default="0", help="the core of both servers")
    parser.add_argument("--load-cpus", default="1", help="cores of the load generator")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Start both servers and measure them in turns."""
    shape = FleetShape(options.tasks, options.channels, options.items)
    forward = BareForward(options, shape)
    with our_server(options, shape) as ours, echo_server(options) as echo:
        turns = [_turn(options, ours, echo, forward) for _ in range(options.turns)]
    figures = {name: median(map(ratio, turns)) for name, ratio in RATIOS.items()}
    fields = Turn.__dataclass_fields__
    figures |= {name: median(getattr(turn, name) for turn in turns) for name in fields}
    rows = [[f"{ratio(turn):.3f}" for ratio in RATIOS.values()] for turn in turns]
    return Report("edge", figures, vars(options), tuple(RATIOS), rows)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: the process ids whose time is measured, and its requests."""

    pids: tuple[int, ...]
    port: int
    bodies: list[tuple[str, str]]
    headers: dict[str, str]
    metrics: str = ""

    def load(self, options: argparse.Namespace, clients: int) -> tuple[LoadResult, list[float]]:
        """Run one window; return its result and the microseconds per request of each process."""
        plan = LoadPlan(
            "127.0.0.1", self.port, clients, options.seconds, 0.0, self.bodies,
            headers=self.headers,
        )  # fmt: skip
        before = [cpu_seconds(pid) for pid in self.pids]
        result = measure(plan, options.load_cpus)
        spent = [cpu_seconds(pid) - b for pid, b in zip(self.pids, before, strict=True)]
        if result.failed:
            raise SystemExit(f"{result.failed} of {result.requests} requests failed")
        return result, [1e6 * each / result.requests for each in spent]


def _turn(options: argparse.Namespace, ours: Server, echo: Server, forward: "BareForward") -> Turn:
    many_echo, (echo_us,) = echo.load(options, options.clients)
    before = _batches(ours)
    many, (worker_us, device_us) = ours.load(options, options.clients)
    rows, batches = (b - a for a, b in zip(before, _batches(ours), strict=True))
    forward_us = forward.us_per_row(max(1, round(rows / batches)))
    one, _ = ours.load(options, 1)
    one_echo, _ = echo.load(options, 1)
    return Turn(
        rate=many.requests_per_s,
        echo_rate=many_echo.requests_per_s,
        worker_us=worker_us,
        device_us=device_us,
        echo_us=echo_us,
        forward_us=forward_us,
        p50_ms=one.p50_ms,
        echo_p50_ms=one_echo.p50_ms,
        batch_rows=rows / batches,
    )


class BareForward:
    """The forward and heads of random tasks, in this process on one thread."""

    def __init__(self, options: argparse.Namespace, shape: FleetShape) -> None:
        torch.set_num_threads(1)
        self._cpus = {int(cpu) for cpu in options.server_cpus.split(",")}
        self._shape, self._length = shape, options.history
        self._tasks = resident_tasks(shape, getattr(torch, options.precision))
        self._heads = ResidentHeads.of(shape, self._tasks, tables=False)
        self._random = np.random.default_rng(3)
        self.us_per_row(options.clients)  # compiles

    def us_per_row(self, rows: int) -> float:
        """Microseconds of processor time per row in batches of ``rows``."""
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cpus)
        try:
            seconds = [self._run(rows, seed) for seed in range(FORWARDS)]
        finally:
            os.sched_setaffinity(0, own)
        return 1e6 * median(seconds) / rows

    def _run(self, rows: int, seed: int) -> float:
        chosen = self._random.integers(self._shape.tasks, size=rows).tolist()
        histories = random_histories(self._shape, np.full(rows, self._length), seed)
        refs = [self._tasks.refs[at] for at in chosen]
        heads = [self._heads.refs[at] for at in chosen]
        started = time.thread_time()
        users = self._tasks.forward.user_vectors(histories, refs)
        self._heads.heads.scores(users, heads, [Selection()] * rows, histories)
        return time.thread_time() - started


@contextmanager
def our_server(options: argparse.Namespace, shape: FleetShape) -> Iterator[Server]:
    """Register the tasks, then serve them to a key of a tenant with a rate limit."""
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        folder, data = Path(scratch) / "backbone", Path(scratch) / "data"
        bundles = make_bundles(shape, make_backbone(shape, folder))
        cpus, port = options.server_cpus, options.port
        with serving(folder, data, port, cpus, workers=1, threads=1) as url:
            register(url, bundles)
            key = _limited_key(url)
        settings = {"auth": "on", "workers": 1, "threads": 1, "precision": options.precision}
        settings["metrics_port"] = port + 2
        with serving_process(folder, data, port, cpus, **settings) as process:
            wait_until_ready(f"http://127.0.0.1:{port}", process)
            pids = child(process.pid, "peterrec: worker"), child(process.pid, "peterrec: device")
            metrics = f"http://127.0.0.1:{port + 2}/metrics"
            yield Server(pids, port, random_bodies(options, shape), {"X-API-Key": key}, metrics)


def _limited_key(url: str) -> str:
    with httpx.Client(base_url=url, timeout=30) as client:
        answer = client.post("/keys", json={"name": "bench", "scopes": ["predict"]})
        answer.raise_for_status()
        secret: str = answer.json()["api_key"]
    return secret


@contextmanager
def echo_server(options: argparse.Namespace) -> Iterator[Server]:
    """Run the echo on the same core."""
    port = options.port + 1
    command = [
        "taskset", "-c", options.server_cpus, sys.executable, "-m", "bench.edge_echo",
        "--port", str(port),
    ]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process)
        shape = FleetShape(options.tasks, options.channels, options.items)
        yield Server((process.pid,), port, random_bodies(options, shape), {})
    finally:
        process.terminate()
        process.wait(timeout=30)


def random_bodies(options: argparse.Namespace, shape: FleetShape) -> list[tuple[str, str]]:
    """Return paths of random tasks with random histories, as a plan of load has them."""
    random = np.random.default_rng(1)
    return [
        (
            f"/tasks/t{random.integers(shape.tasks)}/predict",
            json.dumps({"history": random.integers(0, shape.items, options.history).tolist()}),
        )
        for _ in range(DRAWS)
    ]


def _batches(ours: Server) -> tuple[float, float]:
    """Rows and batches that the device process has run."""
    text = httpx.get(ours.metrics, timeout=10).text
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return float(found["peterrec_batch_rows_sum"]), float(found["peterrec_batch_rows_count"])
