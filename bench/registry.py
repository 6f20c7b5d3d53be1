"""Benchmark of the registry: registrations, swaps on 3 replicas, starts, and memory per bundle."""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import psutil

from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.report import Report
from bench.server import serving, serving_process
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.patches.bundle.verify import BackboneIdentity, BundleLimits, verify_bundle
from peterrec.patches.identity import DEFAULT_TENANT, TaskId
from peterrec.patches.redis.embedded import EmbeddedRedis
from peterrec.patches.registry.records import VersionSummary
from peterrec.patches.registry.registry import Registry, open_redis

REPLICAS = 3
POLL_S = 0.002
SWAP_TIMEOUT_S = 30
FILLERS = 8

Settings = dict[str, object]


@dataclass(frozen=True, slots=True)
class Site:
    """A random backbone on disk, the shape of its tasks, and a folder for all other files."""

    scratch: Path
    backbone: Path
    loaded: LoadedBackbone
    shape: FleetShape
    port: int

    def bundles(self, count: int, skip: int = 0) -> list[bytes]:
        """Make distinct bundles, without the first ``skip``, which other measurements use."""
        shape = replace(self.shape, tasks=skip + count)
        return list(islice(make_bundles(shape, self.loaded), skip, None))


@dataclass(frozen=True, slots=True)
class Start:
    """Times of one server start, and the memory of its device process when it was ready."""

    first_answer_s: float
    ready_s: float
    device_bytes: int


def main(arguments: list[str]) -> None:
    """Run ``python -m bench registry``."""
    parser = argparse.ArgumentParser(prog="python -m bench registry", description=__doc__)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--registrations", type=int, default=200, help="per number of writers")
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--threads", type=int, default=0, help="device threads; 0: from the cores")
    parser.add_argument("--port", type=int, default=8100, help="first of three ports that are used")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Run all four measurements, each on new servers."""
    figures: dict[str, float] = {}
    shape = FleetShape(1, options.channels, options.items)
    with tempfile.TemporaryDirectory(prefix="peterrec-registry-") as folder:
        scratch = Path(folder)
        loaded = make_backbone(shape, scratch / "backbone")
        site = Site(scratch, scratch / "backbone", loaded, shape, options.port)
        settings: Settings = {"workers": 1, "threads": options.threads}
        for number, writers in enumerate(options.writers):
            bundles = site.bundles(options.registrations, number * options.registrations)
            with serving(
                site.backbone, scratch / f"w{writers}", site.port, None, **settings
            ) as url:
                seconds = asyncio.run(register_all(url, bundles, writers))
            figures[f"registrations_per_s_{writers}"] = len(bundles) / seconds
        latencies_ms = swap_latencies(site, options.swaps, settings)
        for share in (50, 99):
            figures[f"swap_p{share}_ms"] = float(np.percentile(latencies_ms, share))
        starts = {count: both_starts(site, count, settings) for count in options.counts}
    for count, (cold, warm) in starts.items():
        figures[f"start_cold_s_{count}"] = cold.ready_s
        figures[f"start_warm_s_{count}"] = warm.ready_s
        figures[f"first_answer_cold_s_{count}"] = cold.first_answer_s
    if len(starts) > 1:
        figures["memory_per_weights"] = memory_per_weights(site, starts)
    columns = ("bundles", "cold s", "warm s", "first answer cold s", "device MiB")
    rows = [
        [
            str(count),
            *(f"{value:.1f}" for value in (cold.ready_s, warm.ready_s, cold.first_answer_s)),
            str(cold.device_bytes >> 20),
        ]
        for count, (cold, warm) in starts.items()
    ]
    return Report("registry", figures, vars(options), columns, rows)


async def register_all(url: str, bundles: Sequence[bytes], writers: int) -> float:
    """Return the seconds that this number of writers takes until all bundles are served."""
    waiting = iter(enumerate(bundles))

    async def write(client: httpx.AsyncClient) -> None:
        for number, bundle in waiting:
            await push(client, f"t{number}", bundle)

    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        started = time.perf_counter()
        await asyncio.gather(*(write(client) for _ in range(writers)))
        return time.perf_counter() - started


async def push(client: httpx.AsyncClient, task: str, bundle: bytes) -> str:
    """Register a bundle and return its digest."""
    answer = await client.post(f"/tasks/{task}/versions", content=bundle)
    if answer.status_code not in (200, 201):
        raise SystemExit(f"registering {task} failed: {answer.status_code} {answer.text}")
    return str(answer.json()["digest"])


def swap_latencies(site: Site, swaps: int, settings: Settings) -> list[float]:
    """Measure the milliseconds from pushing a bundle to one replica until all answer with it."""
    bundles = site.bundles(swaps + 1)
    with ExitStack() as stack:
        redis = stack.enter_context(private_redis(site.scratch / "swaps"))
        urls = [
            stack.enter_context(
                serving(
                    site.backbone,
                    site.scratch / f"replica-{number}",
                    site.port + number,
                    None,
                    redis_url=redis,
                    **settings,
                )
            )
            for number in range(REPLICAS)
        ]
        return asyncio.run(_swap_all(urls, bundles))


async def _swap_all(urls: Sequence[str], bundles: Sequence[bytes]) -> list[float]:
    latencies: list[float] = []
    async with clients_of(urls) as clients:
        for bundle in bundles:
            started = time.perf_counter()
            digest = await push(clients[0], "swapped", bundle)
            await asyncio.gather(*(_until_served(client, digest) for client in clients))
            latencies.append((time.perf_counter() - started) * 1000)
    return latencies[1:]  # the first one also creates the pool and the connections


@asynccontextmanager
async def clients_of(urls: Sequence[str]) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Open one client for each server."""
    clients = [httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) for url in urls]
    try:
        yield clients
    finally:
        for client in clients:
            await client.aclose()


async def _until_served(client: httpx.AsyncClient, digest: str) -> None:
    deadline = time.perf_counter() + SWAP_TIMEOUT_S
    while time.perf_counter() < deadline:
        answer = await client.post("/tasks/swapped/predict", json={"history": []})
        if answer.status_code == 200 and answer.json()["digest"] == digest:
            return
        await asyncio.sleep(POLL_S)
    raise SystemExit(f"{client.base_url} does not serve the new version")


def both_starts(site: Site, count: int, settings: Settings) -> tuple[Start, Start]:
    """Measure a start from the registry alone, and a second one with the copy on the disk."""
    with private_redis(site.scratch / f"start-{count}") as redis:
        asyncio.run(fill(redis, site, count))
        data_dir = site.scratch / f"start-{count}" / "server"
        cold = _start(site, data_dir, {**settings, "redis_url": redis})
        warm = _start(site, data_dir, {**settings, "redis_url": redis})
    return cold, warm


def _start(site: Site, data_dir: Path, settings: Settings) -> Start:
    """Start the server and wait until it is ready, while requesting the first task repeatedly."""
    started = time.perf_counter()
    first_answer_s = 0.0
    with (
        serving_process(site.backbone, data_dir, site.port, None, **settings) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{site.port}", trust_env=False) as client,
    ):
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the server ended with status {process.returncode}")
            if not first_answer_s and _is_ok(client, "POST", "/tasks/t0/predict"):
                first_answer_s = time.perf_counter() - started
            if _is_ok(client, "GET", "/readyz"):
                ready_s = time.perf_counter() - started
                return Start(first_answer_s or ready_s, ready_s, _device_bytes(process.pid))
            time.sleep(10 * POLL_S)


def _is_ok(client: httpx.Client, method: str, path: str) -> bool:
    try:
        content = '{"history": []}' if method == "POST" else None
        return client.request(method, path, content=content, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _device_bytes(pid: int) -> int:
    children = psutil.Process(pid).children(recursive=True)
    devices = [child for child in children if "device" in " ".join(child.cmdline())]
    return int(devices[0].memory_info().rss)


def memory_per_weights(site: Site, starts: dict[int, tuple[Start, Start]]) -> float:
    """Return the device process's growth per bundle, divided by the size of a bundle's weights."""
    fewest, most = min(starts), max(starts)
    grown = starts[most][0].device_bytes - starts[fewest][0].device_bytes
    (data,) = site.bundles(1)
    bundle = verify_bundle(data, backbone=identity_of(site), limits=BundleLimits())
    return grown / (most - fewest) / (bundle.patch_bytes + bundle.head_bytes)


async def fill(redis: str, site: Site, count: int) -> None:
    """Register tasks t0, t1, … directly in Redis, without a server."""
    registry = Registry(open_redis(redis))
    identity, room = identity_of(site), asyncio.Semaphore(FILLERS)

    async def add(number: int, data: bytes) -> None:
        bundle = verify_bundle(data, backbone=identity, limits=BundleLimits())
        digest = await registry.blobs.put(bundle.blob)
        task, summary = TaskId(f"t{number}"), VersionSummary.of(bundle)
        await registry.add_version(DEFAULT_TENANT, task, digest, summary, actor="bench")
        room.release()

    async with asyncio.TaskGroup() as adding:
        shape = replace(site.shape, tasks=count)
        for number, data in enumerate(make_bundles(shape, site.loaded)):
            await room.acquire()
            adding.create_task(add(number, data))
    await registry.close()


def identity_of(site: Site) -> BackboneIdentity:
    return BackboneIdentity(site.loaded.fingerprint, site.loaded.backbone.spec)


@contextmanager
def private_redis(folder: Path) -> Iterator[str]:
    """Run an embedded Redis with its append-only file; yields its URL."""
    redis = EmbeddedRedis(folder)
    redis.start()
    try:
        yield redis.url
    finally:
        redis.stop()
