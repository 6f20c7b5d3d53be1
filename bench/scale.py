"""What several replicas behind nginx do together, measured and as a simulation forecasts it.

One replica is measured with one client and with many: the processor time of generator, proxy,
worker and device for a request. From these alone, `bench/simulation.py` forecasts rates and
latencies of 1, 2 and 4 replicas with other numbers of clients. They are measured afterwards, and
each ratio says forecast ÷ measured. ``--simulate`` measures nothing, and simulates 100,000 requests
a second with bursts, lost replicas and a changing registry, from the costs in an earlier report.
"""

import argparse
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import psutil

from bench.edge import random_bodies
from bench.load import LoadPlan, LoadResult, measure
from bench.processes import child, cpu_seconds
from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.report import Report, Setting
from bench.server import register, serving_process, wait_until_ready
from bench.simulation import Cost, Costs, Forecast, Load, Site, forecast

NGINX = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    upstream peterrec {{ {servers} keepalive 512; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://peterrec;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""
COMPARED = ("rate", "p50_ms", "p99_ms")
SCENES: dict[str, dict[str, float]] = {
    "steady": {},
    "burst_3x": {"burst": 3.0, "burst_s": 0.2},
    "tenth_lost": {"lost": 0.1},
    "burst_and_lost": {"burst": 2.0, "burst_s": 0.2, "lost": 0.1},
    "storm_20": {"changes_per_s": 20.0},
    "storm_40": {"changes_per_s": 40.0},
    "storm_and_lost": {"changes_per_s": 20.0, "lost": 0.1},
}
"""What happens to a simulated site: from the middle of a second on to a share of the replicas, and
changes of the registry all the time."""


def main(arguments: list[str]) -> None:
    """``python -m bench scale``."""
    parser = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--history", type=int, default=50, help="items per history")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32, 256])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--port", type=int, default=8160, help="and the ones above it")
    parser.add_argument("--simulate", type=Path, help="a report of this command; measure nothing")
    parser.add_argument("--per-s", type=float, default=100_000, help="requests to simulate")
    parser.add_argument("--busy", type=float, default=0.6, help="share of a device's time in use")
    options = parser.parse_args(arguments)
    (simulated(options) if options.simulate else run(options)).show()


@dataclass(frozen=True, slots=True)
class Window:
    """A load, and the seconds of processor time of each process for a request."""

    result: LoadResult
    generator_s: float
    proxy_s: float
    worker_s: float
    device_s: float


def run(options: argparse.Namespace) -> Report:
    """Measure one replica, forecast the others, then measure them."""
    if not shutil.which("nginx"):
        raise SystemExit("nginx is not installed")
    shape = FleetShape(options.tasks, options.channels, options.items)
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        folder = Path(scratch)
        bundles = list(make_bundles(shape, make_backbone(shape, folder / "backbone")))
        cases = [(count, clients) for count in options.replicas for clients in options.clients]
        with replicas(options, folder, 1, bundles) as running:
            costs = calibrated(options, shape, running)
        figures = flat(costs)
        expected = {
            case: forecast(costs, Site(case[0], options.cores), Load(3.0, case[1]))
            for case in cases
        }
        rows = []
        for count in options.replicas:
            with replicas(options, folder, count, bundles) as running:
                for clients in options.clients:
                    seen = _seen(options, shape, running, clients)
                    guess = expected[count, clients]
                    figures |= {
                        f"{what}_{count}_{clients}": getattr(guess, what) / getattr(seen, what)
                        for what in COMPARED
                    }
                    rows.append([str(count), str(clients), *_pairs(guess, seen)])
    for what in COMPARED:
        ratios = [value for name, value in figures.items() if name.startswith(f"{what}_")]
        figures[f"most_{what}"] = max(max(ratio, 1 / ratio) for ratio in ratios)
    columns = ("replicas", "clients", *(f"{each} {w}" for w in COMPARED for each in ("~", "=")))
    return Report("scale", figures, _settings(options), columns, rows)


def _seen(
    options: argparse.Namespace, shape: FleetShape, running: "Running", clients: int
) -> Forecast:
    """What was measured, as a forecast would say it."""
    found = [_window(options, shape, running, clients).result for _ in range(options.turns)]
    fields = ("requests_per_s", "p50_ms", "p99_ms", "p99_ms")
    return Forecast(*(median(getattr(each, name) for each in found) for name in fields))


def _pairs(guess: Forecast, seen: Forecast) -> list[str]:
    return [f"{getattr(side, name):.4g}" for name in COMPARED for side in (guess, seen)]


def _settings(options: argparse.Namespace) -> dict[str, Setting]:
    given = {name: value for name, value in vars(options).items() if value is not None}
    return {name: str(value) if name == "simulate" else value for name, value in given.items()}


@dataclass(frozen=True, slots=True)
class Running:
    """Replicas behind a proxy, and the process ids whose time is measured.

    ``change_s`` is the processor time of a device process for each bundle that was registered.
    """

    port: int
    proxy: int
    workers: tuple[int, ...]
    devices: tuple[int, ...]
    change_s: float


@contextmanager
def replicas(
    options: argparse.Namespace, folder: Path, count: int, bundles: Sequence[bytes]
) -> Iterator[Running]:
    """Start replicas with one registry, and nginx before them."""
    with ExitStack() as stack:
        processes = []
        first = options.port + 1
        for number in range(count):
            data = folder / f"data-{count}-{number}"
            settings: dict[str, object] = {"workers": 1, "threads": 1}
            process = stack.enter_context(
                serving_process(folder / "backbone", data, first + number, None, **settings)
            )
            wait_until_ready(f"http://127.0.0.1:{first + number}", process)
            device = child(process.pid, "peterrec: device")
            before = cpu_seconds(device)
            register(f"http://127.0.0.1:{first + number}", bundles)
            change_s = (cpu_seconds(device) - before) / len(bundles)
            processes.append(process.pid)
        proxy = stack.enter_context(_nginx(options.port, range(first, first + count)))
        yield Running(
            options.port,
            proxy,
            tuple(child(pid, "peterrec: worker") for pid in processes),
            tuple(child(pid, "peterrec: device") for pid in processes),
            change_s,
        )


@contextmanager
def _nginx(port: int, upstream: Sequence[int]) -> Iterator[int]:
    with tempfile.TemporaryDirectory(prefix="peterrec-nginx-") as folder:
        servers = " ".join(f"server 127.0.0.1:{each};" for each in upstream)
        file = Path(folder) / "nginx.conf"
        file.write_text(NGINX.format(folder=folder, servers=servers, port=port))
        process = subprocess.Popen(["nginx", "-c", str(file), "-e", f"{folder}/error.log"])
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process)
            (worker,) = psutil.Process(process.pid).children()
            yield worker.pid
        finally:
            process.terminate()
            process.wait(30)


def calibrated(options: argparse.Namespace, shape: FleetShape, running: Running) -> Costs:
    """What one client's and many clients' requests cost; ``scatter`` is that of one client.

    One client has a round for each message, many share their rounds: the difference is the round.
    """
    alone = [_window(options, shape, running, 1) for _ in range(options.turns)]
    many = [_window(options, shape, running, 128) for _ in range(options.turns)]

    def cost(name: str, passes: int) -> Cost:
        one = median(getattr(each, name) for each in alone) / passes
        shared = median(getattr(each, name) for each in many) / passes
        return Cost(max(0.0, one - shared), min(one, shared))

    p50, p99 = (median(getattr(w.result, name) for w in alone) for name in ("p50_ms", "p99_ms"))
    return Costs(
        cost("generator_s", 2),
        cost("proxy_s", 2),
        cost("worker_s", 2),
        cost("device_s", 1),
        math.log(p99 / p50) / 2.33,
        running.change_s,
    )


def flat(costs: Costs) -> dict[str, float]:
    """The costs in microseconds, by name."""
    found = {"scatter": costs.scatter, "change_us": 1e6 * costs.change_s}
    for name in ("generator", "proxy", "worker", "device"):
        each = getattr(costs, name)
        found |= {f"{name}_round_us": 1e6 * each.round_s, f"{name}_us": 1e6 * each.message_s}
    return found


def _costs_of(figures: dict[str, float]) -> Costs:
    def cost(name: str) -> Cost:
        return Cost(figures[f"{name}_round_us"] / 1e6, figures[f"{name}_us"] / 1e6)

    generator, proxy, worker, device = map(cost, ("generator", "proxy", "worker", "device"))
    change_s = figures["change_us"] / 1e6
    return Costs(generator, proxy, worker, device, figures["scatter"], change_s)


def _window(
    options: argparse.Namespace, shape: FleetShape, running: Running, clients: int
) -> Window:
    bodies = random_bodies(options, shape)
    plan = LoadPlan("127.0.0.1", running.port, clients, options.seconds, 0.3, bodies)
    parts = ((running.proxy,), running.workers, running.devices)
    before = [sum(map(cpu_seconds, pids)) for pids in parts]
    own = _children_s()
    result = measure(plan)
    generator_s = _children_s() - own
    spent = [sum(map(cpu_seconds, pids)) - b for pids, b in zip(parts, before, strict=True)]
    if result.failed:
        raise SystemExit(f"{result.failed} requests failed")
    return Window(result, *(each / result.answered for each in (generator_s, *spent)))


def _children_s() -> float:
    """Seconds of processor time of processes that this one has started and that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.children_user + times.children_system)


def simulated(options: argparse.Namespace) -> Report:
    """Simulate a large site from a report's costs, each process on a core of its own."""
    text = options.simulate.read_text(encoding="utf-8").strip().splitlines()[-1]
    costs = _costs_of(json.loads(text)["figures"])
    per_replica = options.busy / max(costs.device.message_s, 2 * costs.worker.message_s)
    count = math.ceil(options.per_s / per_replica)
    figures: dict[str, float] = {"replicas": count}
    rows = []
    site = Site(
        count,
        proxies=math.ceil(2 * options.per_s * costs.proxy.message_s / 0.5),
        generators=math.ceil(2 * options.per_s * costs.generator.message_s / 0.3),
    )
    for choices in (1, 2):
        for name, scene in SCENES.items():
            load = Load(
                1.2,
                per_s=options.per_s,
                burst=scene.get("burst", 1.0),
                burst_at_s=0.4,
                warm_up_s=0.1,
                burst_s=scene.get("burst_s", 0.0),
                lost=round(count * scene.get("lost", 0.0)),
                changes_per_s=scene.get("changes_per_s", 0.0),
            )
            found = forecast(costs, replace(site, choices=choices), load)
            figures |= {f"{name}_{choices}_p99_ms": found.p99_ms}
            times = (found.p50_ms, found.p99_ms, found.worst_ms)
            rows.append([name, str(choices), f"{found.rate:.0f}", *(f"{t:.3g}" for t in times)])
    columns = ("scene", "choices", "answers/s", "p50 ms", "p99 ms", "worst ms")
    return Report("scale", figures, _settings(options), columns, rows)
