"""What a thousand followers of one registry cost its Redis, and how soon each knows of a change.

Each follower has its own connections and reads as a replica does: it waits for a change, looks at
the revision at intervals, and reads what was touched. It loads nothing and exchanges no quotas.
Followers share processes, so a late one may have waited for its own process: the time that Redis
needed is given beside it.
"""

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.random_fleet import FleetShape, make_backbone
from bench.registry import Site, fill, identity_of, private_redis
from bench.report import Report
from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.patches.identity import DEFAULT_TENANT, Digest, TaskId
from peterrec.patches.registry.records import RegistrySnapshot, VersionSummary
from peterrec.patches.registry.registry import Registry, open_redis

INTERVAL_S = 1.0
"""PETERREC_RECONCILE_INTERVAL_S."""


def main(arguments: list[str]) -> None:
    """``python -m bench fanout``."""
    parser = argparse.ArgumentParser(prog="python -m bench fanout", description=__doc__)
    parser.add_argument("--followers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--every-s", type=float, default=1.0, help="seconds between changes")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--items", type=int, default=20_000)
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Fill a registry, then let each number of followers follow it."""
    shape = FleetShape(2, options.channels, options.items)
    figures: dict[str, float] = {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="peterrec-fanout-") as folder:
        scratch = Path(folder)
        loaded = make_backbone(shape, scratch / "backbone")
        site = Site(scratch, scratch / "backbone", loaded, shape, 0)
        with private_redis(scratch / "redis") as url:
            before = _redis_cpu_s(url)
            turns = cycle(asyncio.run(_fill(url, site, options.tasks)))
            spent_s = _redis_cpu_s(url) - before
            figures["redis_ms_per_registration"] = 1000 * spent_s / options.tasks
            for count in options.followers:
                found = measured(url, turns, count, options)
                figures |= {f"{name}_{count}": value for name, value in found.items()}
                rows.append([str(count), *(f"{value:.3g}" for value in found.values())])
    return Report("fanout", figures, vars(options), ("followers", *found), rows)


def measured(
    url: str, turns: Iterator[Digest], followers: int, options: argparse.Namespace
) -> dict[str, float]:
    """Let followers follow: what a start, silence and changes cost, and when each knew."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    gates = [context.Barrier(options.processes + 1) for _ in range(3)]
    shares = [len(part) for part in np.array_split(np.arange(followers), options.processes)]
    processes = [
        context.Process(target=_follow_all, args=(url, share, options.changes, gates, results))
        for share in shares
    ]
    for process in processes:
        process.start()
    gates[0].wait()
    before, started = _redis_cpu_s(url), time.monotonic()
    gates[1].wait()  # all have read everything
    start_s, start_cpu_s = time.monotonic() - started, _redis_cpu_s(url) - before
    before = _redis_cpu_s(url)
    time.sleep(5)
    silent = (_redis_cpu_s(url) - before) / 5
    before = _redis_cpu_s(url)
    changed_at = asyncio.run(_change(url, turns, options.changes, options.every_s))
    busy_s = _redis_cpu_s(url) - before - silent * options.changes * options.every_s
    gates[2].wait()
    seen = [results.get() for _ in processes]
    for process in processes:
        process.join()
    delays = np.array([each for part in seen for each in part]) - np.array(changed_at)
    return {
        "p50_ms": 1000 * float(np.percentile(delays, 50)),
        "p99_ms": 1000 * float(np.percentile(delays, 99)),
        "redis_share_silent": silent,
        "redis_ms_per_change": 1000 * busy_s / options.changes,
        "redis_ms_per_start": 1000 * start_cpu_s / followers,
        "all_started_s": start_s,
    }


def _follow_all(url: str, count: int, changes: int, gates: list[Barrier], results: Any) -> None:
    """A process of followers; puts the times at which each follower knew of each change."""
    uvloop.run(_follow_some(url, count, changes, gates, results))


async def _follow_some(
    url: str, count: int, changes: int, gates: list[Barrier], results: Any
) -> None:
    registries = [Registry(open_redis(url)) for _ in range(count)]
    first = await registries[0].feed.revision() if registries else 0
    await asyncio.to_thread(gates[0].wait)
    known = await asyncio.gather(*(each.feed.snapshot() for each in registries))
    await asyncio.to_thread(gates[1].wait)
    followers = (_follow(*each, first, changes) for each in zip(registries, known, strict=True))
    seen = await asyncio.gather(*followers)
    await asyncio.to_thread(gates[2].wait)
    results.put(seen)
    for each in registries:
        await each.close()


async def _follow(
    registry: Registry, known: RegistrySnapshot, first: int, changes: int
) -> list[float]:
    """Follow as a replica does; return when each change was known, in seconds."""
    seen: list[float] = []
    while len(seen) < changes:
        await registry.feed.wait_for_change(known.revision, INTERVAL_S)
        await registry.feed.revision()
        known = await registry.feed.catch_up(known)
        seen += [time.monotonic()] * (known.revision - first - len(seen))
    return seen[:changes]


async def _change(url: str, turns: Iterator[Digest], changes: int, every_s: float) -> list[float]:
    """Point an alias to another version, many times; return when each change was made."""
    registry, task = Registry(open_redis(url)), TaskId("t0")
    at = []
    for digest in islice(turns, changes):
        await registry.set_alias(
            DEFAULT_TENANT, task, "prod", digest, "bench", allow_new_outputs=True
        )
        at.append(time.monotonic())
        await asyncio.sleep(every_s)
    await registry.close()
    return at


async def _fill(url: str, site: Site, tasks: int) -> list[Digest]:
    """Register tasks; return two versions of the first, which is at the second of them."""
    await fill(url, site, tasks)
    registry, task = Registry(open_redis(url)), TaskId("t0")
    before = (await registry.get_task(DEFAULT_TENANT, task)).record.aliases["prod"].digest
    (data,) = site.bundles(1, tasks)
    bundle = verify_bundle(data, backbone=identity_of(site), limits=BundleLimits())
    await registry.blobs.put(bundle.blob)
    summary = VersionSummary.of(bundle)
    await registry.add_version(DEFAULT_TENANT, task, bundle.digest, summary, "bench", alias="prod")
    await registry.close()
    return [before, bundle.digest]


def _redis_cpu_s(url: str) -> float:
    """Seconds of processor time that Redis has used."""

    async def ask() -> float:
        registry = Registry(open_redis(url))
        found = await registry.store.redis.info("cpu")
        await registry.close()
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])

    return asyncio.run(ask())
