"""How the device is shared: a polite tenant beside one that floods, and twenty tenants at once.

In process, the device's queue, batches and forward run with the fair queue and with a plain one, in
turns. Over HTTP, a server with its own processes has two tenants with keys: one sends single rows,
alternately alone and beside calls of many rows, and both send as much as they can.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import torch

from bench.fair_device import Load, Shared, SharedDevice
from bench.load import LoadPlan, LoadResult, measure
from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.report import Report
from bench.server import serving_process, wait_until_ready
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.patches.bundle.verify import BackboneIdentity, BundleLimits, verify_bundle
from peterrec.service.device.slots import SlotStore

POLITE = Load("polite", 4, 1, pause_s=0.005)
FLOOD = Load("flood", 8, 256)
"""Each of its clients asks for as many rows as a call may have, without pause."""

MODEST, GREEDY = Load("modest", 20, 8), Load("greedy", 400, 8)
TWENTY = [Load(f"t{n}", 12, 4 + n) for n in range(20)]
HEAD_START_S = 4.0
"""Seconds that the flood runs over HTTP before the polite client is measured."""


def main(arguments: list[str]) -> None:
    """``python -m bench fair``."""
    parser = argparse.ArgumentParser(prog="python -m bench fair", description=__doc__)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--server-cpus", default="0-1")
    parser.add_argument("--load-cpus", default="0-1")
    parser.add_argument("--only", choices=("process", "http"), default=None)
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure in process and over HTTP."""
    torch.set_num_threads(1)
    shape = FleetShape(options.tasks, options.channels)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        loaded = make_backbone(shape, Path(scratch) / "backbone")
        bundles = list(make_bundles(shape, loaded))
        if options.only != "http":
            figures |= in_process(shape, loaded, bundles, options)
        if options.only != "process":
            figures |= over_http(Path(scratch), bundles, options)
    return Report("fair", figures, vars(options) | {"only": options.only or "both"})


def in_process(
    shape: FleetShape,
    loaded: LoadedBackbone,
    bundles: Sequence[bytes],
    options: argparse.Namespace,
) -> dict[str, float]:
    """Compare the fair queue with a plain one."""
    store = SlotStore(loaded.backbone, 1 << 30)
    identity = BackboneIdentity(loaded.fingerprint, loaded.backbone.spec)
    residents = [
        store.load(verify_bundle(data, backbone=identity, limits=BundleLimits()))
        for data in bundles
    ]
    device = SharedDevice(shape, store, residents)
    found: list[dict[str, float]] = []
    for _ in range(options.repeats):

        def shared(*loads: Load, is_fair: bool = True) -> Shared:
            return device.run(loads, options.seconds, is_fair=is_fair)

        alone, beside = shared(POLITE), shared(POLITE, FLOOD)
        plain = shared(POLITE, FLOOD, is_fair=False)
        half = shared(MODEST, GREEDY)
        twenty, plain_twenty = shared(*TWENTY), shared(*TWENTY, is_fair=False)
        found.append(
            {
                "device_p99_ratio": beside.p99_ms("polite") / alone.p99_ms("polite"),
                "device_p99_ms": beside.p99_ms("polite"),
                "plain_device_p99_ms": plain.p99_ms("polite"),
                "beside_flood_vs_plain": beside.rate / plain.rate,
                "share": half.share("modest") / 0.5,
                "jain_20": twenty.jain(),
                "plain_jain_20": plain_twenty.jain(),
                "throughput_vs_plain": twenty.rate / plain_twenty.rate,
            }
        )
    return _medians(found)


def over_http(
    scratch: Path, bundles: Sequence[bytes], options: argparse.Namespace
) -> dict[str, float]:
    """Measure two tenants of a server."""
    backbone, data = scratch / "backbone", scratch / "data"
    settings = {"auth": "on", "workers": 1, "threads": 1, "request_timeout_ms": 20_000}
    url = f"http://127.0.0.1:{options.port}"
    with (
        (scratch / "out.txt").open("wb") as out,
        serving_process(
            backbone, data, options.port, options.server_cpus, out, **settings
        ) as process,
    ):
        wait_until_ready(url, process)
        printed = re.search(r"prk_[0-9a-f]+_[0-9a-f]+", (scratch / "out.txt").read_text())
        assert printed is not None, "the server printed no key"
        keys = {
            name: _tenant(url, printed.group(), name, bundles[:16]) for name in ("polite", "flood")
        }
        found = [_two_tenants(keys, options) for _ in range(options.repeats)]
    return _medians(found)


def _tenant(url: str, operator: str, name: str, bundles: Sequence[bytes]) -> str:
    """Make a tenant with tasks t0, t1, … and return a key of it."""
    with httpx.Client(base_url=url, headers={"X-API-Key": operator}, timeout=60) as client:
        client.put(f"/tenants/{name}", json={}).raise_for_status()
        body = {"name": "bench", "scopes": ["predict", "admin"]}
        made = client.post(f"/tenants/{name}/keys", json=body).raise_for_status().json()
    key: str = made["api_key"]
    with httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=60) as client:
        for task, bundle in enumerate(bundles):
            client.post(f"/tasks/t{task}/versions", content=bundle).raise_for_status()
    return key


def _two_tenants(keys: Mapping[str, str], options: argparse.Namespace) -> dict[str, float]:
    random = np.random.default_rng(0)

    def plan(load: Load, seconds: float) -> LoadPlan:
        bodies = []
        for task in range(16):
            drawn = random.integers(0, 20_000, (load.rows, load.items)).tolist()
            instances = [{"history": history} for history in drawn]
            body = instances[0] if load.rows == 1 else {"instances": instances}
            bodies.append((f"/tasks/t{task}/predict", json.dumps(body)))
        headers = {"X-API-Key": keys[load.tenant]}
        place = ("127.0.0.1", options.port, load.clients, seconds, 0.5)
        return LoadPlan(*place, bodies, headers=headers, pause_s=load.pause_s)

    def beside(first: Load, second: Load | None) -> tuple[LoadResult, LoadResult | None]:
        own = plan(first, options.seconds)
        if second is None:
            return measure(own, options.load_cpus), None
        other = plan(second, options.seconds + HEAD_START_S + 1)
        with ThreadPoolExecutor(1) as aside:
            running = aside.submit(measure, other, options.load_cpus)
            time.sleep(HEAD_START_S)
            return measure(own, options.load_cpus), running.result()

    flood = Load("flood", 16, 256)
    alone, _ = beside(POLITE, None)
    pressed, other = beside(POLITE, flood)
    busy, _ = beside(Load("polite", 32, 8), Load("flood", 32, 8))
    full, _ = beside(Load("polite", 32, 8), None)
    assert other is not None
    return {
        "http_p99_ratio": pressed.p99_ms / alone.p99_ms,
        "http_p50_ratio": pressed.p50_ms / alone.p50_ms,
        "http_p99_alone_ms": alone.p99_ms,
        "http_p99_ms": pressed.p99_ms,
        "http_share": 2 * busy.requests_per_s / full.requests_per_s,
        "http_flood_rows_per_s": 256 * other.requests_per_s,
        "failed": float(pressed.failed + alone.failed),
    }


def _medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: median(each[name] for each in found) for name in found[0]}
