"""A stream of users beside interactive calls: what it costs them, its rate, and its memory.

Calls of one row are measured alternately alone and beside ``POST /tasks/{task}/predict:batch``,
which curl sends from a file while it reads the answers. With ``--lines``, one file of so many lines
is answered, and the memory of the worker, the device process and curl is sampled meanwhile.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from threading import Thread

import numpy as np
import psutil

from bench.edge import random_bodies
from bench.load import LoadPlan, measure
from bench.processes import child
from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.report import Report
from bench.server import register, serving_process, wait_until_ready

TASKS = 16
CLIENTS, PAUSE_S = 4, 0.005
"""Interactive clients, and how long each waits between its calls."""

HEAD_START_S = 1.0
"""Seconds that the stream runs before interactive calls are measured."""

SAMPLE_S = 0.2
DISTINCT = 5_000
"""Users in a file, which are repeated: so many that no cache holds them."""


def main(arguments: list[str]) -> None:
    """``python -m bench bulk``."""
    parser = argparse.ArgumentParser(prog="python -m bench bulk", description=__doc__)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--history", type=int, default=50, help="items per history")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lines", type=int, default=0, help="measure memory over so many lines")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--server-cpus", default="0-1")
    parser.add_argument("--load-cpus", default="0-1")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure latencies, or memory."""
    shape = FleetShape(TASKS, options.channels)
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        folder = Path(scratch)
        loaded = make_backbone(shape, folder / "backbone")
        place = (folder / "backbone", folder / "data", options.port, options.server_cpus)
        with serving_process(*place, workers=1, threads=1) as process:
            url = f"http://127.0.0.1:{options.port}"
            wait_until_ready(url, process)
            register(url, make_bundles(shape, loaded))
            if options.lines:
                figures = _memory(url, folder, options, process.pid)
            else:
                figures = _latencies(url, folder, options, shape)
    return Report("bulk", figures, vars(options))


def _latencies(
    url: str, folder: Path, options: argparse.Namespace, shape: FleetShape
) -> dict[str, float]:
    file = folder / "users.ndjson"
    _write_users(file, 200_000, options.history)
    place = ("127.0.0.1", options.port, CLIENTS, options.seconds, 0.5)
    plan = LoadPlan(*place, random_bodies(options, shape), pause_s=PAUSE_S)
    rate_alone = _rate(url, file, options)  # first: later, the server expects interactive calls
    measure(plan, options.load_cpus)  # warms everything up
    found: list[dict[str, float]] = []
    for _ in range(options.repeats):
        alone = measure(plan, options.load_cpus)
        with _streaming(url, file, options.load_cpus) as stream:
            time.sleep(HEAD_START_S)
            before, began_at = stream.answered, time.perf_counter()
            beside = measure(plan, options.load_cpus)
            rate = (stream.answered - before) / (time.perf_counter() - began_at)
        found.append(
            {
                "p99_ratio": beside.p99_ms / alone.p99_ms,
                "p50_ratio": beside.p50_ms / alone.p50_ms,
                "p99_alone_ms": alone.p99_ms,
                "p99_beside_ms": beside.p99_ms,
                "rows_per_s_beside": rate,
                "failed": float(alone.failed + beside.failed),
            }
        )
    figures = {name: median(each[name] for each in found) for name in found[0]}
    return figures | {"rows_per_s_alone": rate_alone}


def _rate(url: str, file: Path, options: argparse.Namespace) -> float:
    """Rows per second of the stream when nobody else asks."""
    with _streaming(url, file, options.load_cpus) as stream:
        time.sleep(HEAD_START_S)
        before, began_at = stream.answered, time.perf_counter()
        time.sleep(options.seconds)
        return (stream.answered - before) / (time.perf_counter() - began_at)


def _memory(url: str, folder: Path, options: argparse.Namespace, server: int) -> dict[str, float]:
    """Growth of each process between the first tenth of the lines and the end."""
    file = folder / "users.ndjson"
    _write_users(file, options.lines, options.history)
    ids = {name: child(server, f"peterrec: {name}") for name in ("worker", "device")}
    samples: list[tuple[int, dict[str, int]]] = []
    began_at = time.perf_counter()
    with _streaming(url, file, options.load_cpus, is_repeated=False) as stream:
        ids["curl"] = stream.process.pid
        processes = {name: psutil.Process(pid) for name, pid in ids.items()}
        while stream.process.poll() is None:
            samples.append((stream.answered, _resident(processes)))
            time.sleep(SAMPLE_S)
        stream.finish()
        answered, failed = stream.answered, stream.failed
    taken_s = time.perf_counter() - began_at
    tenth = [sizes for many, sizes in samples if many <= options.lines / 10]
    rest = [sizes for many, sizes in samples if many > options.lines / 10]
    figures = {"answered": float(answered), "failed": float(failed)}
    for name in ("worker", "device", "curl"):
        first = max((sizes[name] for sizes in tenth if name in sizes), default=0)
        last = max((sizes[name] for sizes in rest if name in sizes), default=0)
        figures[f"{name}_mib"] = last / 2**20
        figures[f"{name}_growth_mib"] = (last - first) / 2**20
    return figures | {"rows_per_s": answered / taken_s}


def _resident(processes: Mapping[str, psutil.Process]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, process in processes.items():
        try:
            sizes[name] = process.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # curl has ended
    return sizes


def _write_users(file: Path, lines: int, history: int) -> None:
    random = np.random.default_rng(1)
    users = [
        json.dumps({"history": items}).encode() + b"\n"
        for items in random.integers(0, 20_000, (DISTINCT, history)).tolist()
    ]
    with file.open("wb") as out:
        for start in range(0, lines, DISTINCT):
            out.writelines(islice(users, min(DISTINCT, lines - start)))


class Stream:
    """curl, which sends a file of users and reads their answers; they are counted by a thread."""

    def __init__(self, command: Sequence[str], file: Path, *, is_repeated: bool) -> None:
        self._command, self._file, self._is_repeated = command, file, is_repeated
        self._is_over = False
        self.answered = self.failed = 0
        self.process = self._start()
        self._counting = Thread(target=self._count, daemon=True)
        self._counting.start()

    def finish(self) -> None:
        """Wait until the last answer is counted."""
        self._counting.join()

    def stop(self) -> None:
        """End the stream, also in the middle."""
        self._is_over = True
        self.process.terminate()
        self.process.wait()
        self._counting.join()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._file.open("rb") as users:
            return subprocess.Popen(self._command, stdin=users, stdout=subprocess.PIPE)

    def _count(self) -> None:
        while True:
            assert self.process.stdout is not None
            while data := os.read(self.process.stdout.fileno(), 1 << 16):
                self.answered += data.count(b"\n")
                self.failed += data.count(b'"kind":"error"')
            if self._is_over or not self._is_repeated:
                return
            self.process.wait()
            self.process = self._start()


@contextmanager
def _streaming(url: str, file: Path, cpus: str, *, is_repeated: bool = True) -> Iterator[Stream]:
    command = ["taskset", "-c", cpus, "curl", "-sS", "-N", "-X", "POST", "-T", "-"]
    stream = Stream([*command, f"{url}/tasks/t0/predict:batch"], file, is_repeated=is_repeated)
    try:
        yield stream
    finally:
        stream.stop()
