"""How soon a registered version answers, and how much swaps slow down requests of other tasks.

One service is under steady load on some tasks while versions of other tasks are pushed at a steady
rate. A version counts as served when the answer to a request after the registration has its digest:
``swap_p99_ms`` is the time from the 201 to that answer. Windows with and without swaps alternate.
"""

import argparse
import asyncio
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median

import httpx
import numpy as np

from bench.load import LoadPlan, LoadResult, measure
from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.report import Report
from bench.server import register, serving

DRAWS = 2048

NICENESS = 10
"""Niceness of the client that swaps. At 19 it would notice too late that a version is served."""


def main(arguments: list[str]) -> None:
    """``python -m bench swap``."""
    parser = argparse.ArgumentParser(prog="python -m bench swap", description=__doc__)
    parser.add_argument("--tasks", type=int, default=200, help="one half loaded, the other swapped")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=5.0, help="swaps per second")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--windows", type=int, default=10, help="pairs: with, without swaps")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--server-cpus", default="0")
    parser.add_argument("--load-cpus", default="1")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure windows of load, alternately with and without concurrent swaps."""
    shape = FleetShape(options.tasks, options.channels)
    seconds = options.swaps / options.rate / options.windows
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        folder = Path(scratch) / "backbone"
        loaded = make_backbone(shape, folder)
        bundles = list(make_bundles(FleetShape(2 * options.tasks, options.channels), loaded))
        data, cpus = Path(scratch) / "data", options.server_cpus
        with serving(folder, data, options.port, cpus, workers=1, threads=1) as url:
            register(url, islice(bundles, options.tasks))
            swaps = Swaps(url, bundles, options)
            plan = _plan(options, shape, seconds)
            measure(plan, options.load_cpus)
            quiet: list[LoadResult] = []
            busy: list[LoadResult] = []
            for _ in range(options.windows):
                quiet.append(measure(plan, options.load_cpus))
                with swaps.running():
                    busy.append(measure(plan, options.load_cpus))
    served_ms = np.array(swaps.served_ms)
    figures = {
        "swap_p50_ms": float(np.percentile(served_ms, 50)),
        "swap_p99_ms": float(np.percentile(served_ms, 99)),
        "swap_impact": median(b.p99_ms / q.p99_ms for b, q in zip(busy, quiet, strict=True)),
        "swaps": float(len(served_ms)),
        "registration_p50_ms": median(swaps.registered_ms),
        "failed": float(sum(result.failed for result in [*quiet, *busy])),
    }
    rows = [
        [name, *(f"{median(getattr(r, field) for r in found):.2f}" for field in FIELDS)]
        for name, found in (("without", quiet), ("with", busy))
    ]
    return Report("swap", figures, vars(options), ("swaps", *FIELDS), rows)


FIELDS = ("requests_per_s", "p50_ms", "p99_ms")


class Swaps:
    """Pushes versions of the tasks that are not loaded, in a thread, at a steady rate."""

    def __init__(self, url: str, bundles: Sequence[bytes], options: argparse.Namespace) -> None:
        self.served_ms: list[float] = []
        self.registered_ms: list[float] = []
        self._url = url
        self._bundles = bundles
        self._options = options
        self._pushed = 0
        self._is_stopping = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Push versions until the ``with`` block ends."""
        self._is_stopping.clear()
        thread = threading.Thread(target=self._run_aside)
        thread.start()
        try:
            yield
        finally:
            self._is_stopping.set()
            thread.join()

    def _run_aside(self) -> None:
        """Pin this thread to the load's cores, with a lower priority than the load.

        The thread is a client, so it must not take time from the server or from the load.
        """
        pinned = ["taskset", "-pc", self._options.load_cpus, str(threading.get_native_id())]
        subprocess.run(pinned, check=True, stdout=subprocess.DEVNULL)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        asyncio.run(self._run())

    async def _run(self) -> None:
        started, begun = time.perf_counter(), 0
        async with httpx.AsyncClient(base_url=self._url, timeout=30) as client:
            while not self._is_stopping.is_set():
                await self._swap(client)
                begun += 1
                wait = started + begun / self._options.rate - time.perf_counter()
                await asyncio.sleep(max(0.0, wait))

    async def _swap(self, client: httpx.AsyncClient) -> None:
        """Push the next version of a task, then send requests until it answers."""
        tasks, half = self._options.tasks, self._options.tasks // 2
        task = half + self._pushed % (tasks - half)
        bundle = self._bundles[(self._pushed * 7 + task) % len(self._bundles)]
        self._pushed += 1
        started = time.perf_counter()
        answer = await client.post(f"/tasks/t{task}/versions", content=bundle)
        answer.raise_for_status()
        answered = time.perf_counter()
        digest = answer.json()["digest"]
        while True:
            found = await client.post(f"/tasks/t{task}/predict", json={"history": [1, 2, 3]})
            if found.json()["digest"] == digest:
                break
        self.registered_ms.append(1000 * (answered - started))
        self.served_ms.append(1000 * (time.perf_counter() - answered))


def _plan(options: argparse.Namespace, shape: FleetShape, seconds: float) -> LoadPlan:
    random = np.random.default_rng(1)
    bodies = [
        (
            f"/tasks/t{random.integers(options.tasks // 2)}/predict",
            json.dumps({"history": random.integers(0, shape.items, options.history).tolist()}),
        )
        for _ in range(DRAWS)
    ]
    return LoadPlan("127.0.0.1", options.port, options.clients, seconds, 0.5, bodies)
