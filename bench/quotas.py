"""What quotas for requests cost, and how much they let through.

The cost is that of a worker for one prediction: admitting it and its rows, and the fields of its
answer; in rounds that alternate with a tenant without quotas and with nothing of it. Then processes
draw from one bucket without pause, which counts the calls that pass for one token. Last, three
servers over one Redis are asked for more than the quota, in several patterns.
"""

import argparse
import asyncio
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import httpx
from starlette.types import Message

from bench.random_fleet import FleetShape, make_backbone
from bench.registry import private_redis
from bench.report import Report
from bench.server import serving
from peterrec.service.errors import RateExceeded
from peterrec.service.http.bound_tenant import BoundTenant
from peterrec.service.http.quotas import TenantQuotas
from peterrec.service.http.raw_route import Call
from peterrec.service.protocol.quota_table import Bucket, QuotaTable, ServedTenant, name_number

SLOT = 1
ROUND = 100
UNBOUNDED = 10**9
PATTERNS = {"all": (0, 1, 2), "one": (0,), "uneven": (0, 0, 0, 1)}
"""The servers that clients ask, by number."""

TASK = "/tasks/nothing/predict"
"""A task that does not exist, so that the device has nothing to do: 404 is an admitted call."""


def main(arguments: list[str]) -> None:
    """``python -m bench quotas``."""
    parser = argparse.ArgumentParser(prog="python -m bench quotas", description=__doc__)
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument("--drawing", type=int, default=2, help="processes that draw")
    parser.add_argument(
        "--request-us", type=int, default=66, help="of other work per request of a worker"
    )
    parser.add_argument("--rate", type=int, default=100, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--port", type=int, default=8110)
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure all of it."""
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        folder = Path(scratch)
        costs = asyncio.run(_costs(folder, options.rounds))
        lost = {
            name: _lost(folder / name, options.drawing, rest_us)
            for name, rest_us in (("full_speed", 0), ("request_speed", options.request_us))
        }
        passed = dict(_passed(folder, options))
    figures = {
        "other_tenant_us": costs["other"] - costs["nothing"],
        "bound_tenant_us": costs["bound"] - costs["nothing"],
        **{f"lost_at_{name}": ratio for name, ratio in lost.items()},
        **{f"passed_{name}": ratio for name, ratio in passed.items()},
    }
    return Report("quotas", figures, vars(options))


def _bucket(folder: Path, rate: float) -> QuotaTable:
    table = QuotaTable.open(folder / "quotas", worker_count=4)
    table.clear(SLOT, name_number("bound"))
    for bucket in Bucket:
        table.set_rate(SLOT, bucket, rate, time.monotonic())
    return table


async def _costs(folder: Path, rounds: int) -> dict[str, float]:
    """Return the least microseconds of a call over all rounds, which take turns."""
    table = _bucket(folder, UNBOUNDED)
    quotas = TenantQuotas(table)
    bound = ServedTenant("bound", SLOT, UNBOUNDED, UNBOUNDED)
    quotas.replace([bound, ServedTenant("other")])
    best = dict.fromkeys(("nothing", "other", "bound"), sys.float_info.max)
    for _ in range(rounds):
        for tenant in best:
            started = time.perf_counter()
            for _ in range(ROUND):
                await _serve(quotas, tenant)
            seconds = time.perf_counter() - started
            best[tenant] = min(best[tenant], 1e6 * seconds / ROUND)
    table.close()
    return best


async def _serve(quotas: TenantQuotas, tenant: str) -> None:
    call = Call.__new__(Call)  # without reading a head, which is no part of it
    call.tenant, call.send, call.bound, call.waiting_rows = tenant, _send, None, 0
    if tenant != "nothing":
        quotas.admit(call)
        quotas.admit_rows(call, 1)
    await call.send({"type": "http.response.start", "headers": []})
    await call.send({"type": "http.response.body"})
    if tenant != "nothing":
        quotas.release(call, is_answered=True)


async def _send(message: Message) -> None:
    """Drop a part of an answer."""


def _lost(path: Path, processes: int, rest_us: int) -> float:
    """Return how much more than a bucket has several processes can draw.

    Each has ``rest_us`` microseconds of other work between two attempts, and asks for more than the
    bucket has.
    """
    path.mkdir()
    rate = processes * (1e3 if rest_us else 25e3)
    table = _bucket(path, rate)
    context = get_context("spawn")
    begin = context.Barrier(processes)
    passed: Queue[tuple[float, float, int]] = context.Queue()
    drawing = [
        context.Process(target=_draw, args=(path, rest_us, begin, passed)) for _ in range(processes)
    ]
    for process in drawing:
        process.start()
    drawn = [passed.get() for _ in drawing]
    for process in drawing:
        process.join()
    table.close()
    seconds = max(each[1] for each in drawn) - min(each[0] for each in drawn)
    return sum(each[2] for each in drawn) / (rate * (1 + seconds)) - 1


def _draw(
    path: Path, rest_us: int, begin: Barrier, passed: "Queue[tuple[float, float, int]]"
) -> None:
    table = QuotaTable.open(path / "quotas", worker_count=4)
    tenant = BoundTenant(table, table.own_cell(), ServedTenant("bound", SLOT, 50_000))
    begin.wait()
    began = time.monotonic()
    count = 0
    while (now := time.monotonic()) < began + 3.0:
        while rest_us and time.monotonic() < now + 1e-6 * rest_us:
            pass
        try:
            tenant.draw_request()
        except RateExceeded:
            continue
        count += 1
    passed.put((began, time.monotonic(), count))
    table.close()


def _passed(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Return the admitted calls of each pattern, divided by the quota."""
    with ExitStack() as stack:
        redis = stack.enter_context(private_redis(folder / "redis"))
        backbone = folder / "backbone"
        make_backbone(FleetShape(1, 64), backbone)
        urls = [
            stack.enter_context(
                serving(
                    backbone,
                    folder / f"data{number}",
                    options.port + number,
                    workers=1,
                    threads=1,
                    redis_url=redis,
                )
            )
            for number in range(3)
        ]
        body = {"quotas": {"requests_per_s": options.rate}}
        httpx.put(f"{urls[0]}/tenants/default", json=body).raise_for_status()
        for name, pattern in PATTERNS.items():
            with _asking([urls[number] for number in pattern]) as admitted:
                time.sleep(5.0)
                before, began = sum(admitted), time.monotonic()
                time.sleep(options.seconds)
                count, seconds = sum(admitted) - before, time.monotonic() - began
            yield name, count / (options.rate * seconds)


@contextmanager
def _asking(urls: Sequence[str]) -> Iterator[list[int]]:
    """Ask each server without pause in a thread; the list counts what was admitted."""
    admitted, is_over = [0] * len(urls), threading.Event()

    def ask(place: int) -> None:
        with httpx.Client(base_url=urls[place]) as client:
            while not is_over.is_set():
                answer = client.post(TASK, json={"history": [1]})
                admitted[place] += answer.status_code != 429
                time.sleep(0.001)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(urls))]
    for thread in threads:
        thread.start()
    try:
        yield admitted
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
