"""The real service in separate processes, for measurements and load generators."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

START_TIMEOUT_S = 120
UPLOADS_AT_ONCE = 8


@contextmanager
def serving(
    backbone: Path, data_dir: Path, port: int, cpus: str | None = None, **settings: object
) -> Iterator[str]:
    """Run ``peterrec serve`` on loopback without authentication; yield its URL once it is ready."""
    with serving_process(backbone, data_dir, port, cpus, **settings) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield url


@contextmanager
def serving_process(
    backbone: Path,
    data_dir: Path,
    port: int,
    cpus: str | None = None,
    out: IO[bytes] | None = None,
    /,
    **settings: object,
) -> "Iterator[subprocess.Popen[bytes]]":
    """Run ``peterrec serve``; yield its process immediately, before it is ready.

    What it prints, such as its first key, goes to ``out``.
    """
    environment = os.environ | {
        "PETERREC_AUTH": "off",
        "PETERREC_DATA_DIR": str(data_dir),
        "PETERREC_METRICS_PORT": "0",
        "PETERREC_LOG_LEVEL": "warning",
        **{f"PETERREC_{name.upper()}": str(value) for name, value in settings.items()},
    }
    pinned = ["taskset", "-c", cpus] if cpus else []
    command = [
        *pinned,
        sys.executable,
        "-P",
        "-m",
        "peterrec",
        "serve",
        "--backbone",
        str(backbone),
    ]
    process = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=out)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until /readyz answers 200; raise SystemExit if the server ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode}")
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"the server was not ready within {START_TIMEOUT_S} s")


def register(url: str, bundles: Iterable[bytes], first: int = 0) -> float:
    """Register bundles as tasks t0, t1, … (or from ``first`` on) over REST; return the seconds."""
    started = time.perf_counter()
    asyncio.run(_register(url, bundles, first))
    return time.perf_counter() - started


async def _register(url: str, bundles: Iterable[bytes], first: int) -> None:
    pending: set[asyncio.Task[None]] = set()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for task, bundle in enumerate(bundles, first):
            if len(pending) >= UPLOADS_AT_ONCE:
                done, pending = await asyncio.wait(pending, return_when="FIRST_COMPLETED")
                for upload in done:
                    upload.result()
            pending.add(asyncio.create_task(_upload(client, f"t{task}", bundle)))
        for upload in pending:
            await upload


async def _upload(client: httpx.AsyncClient, task: str, bundle: bytes) -> None:
    answer = await client.post(f"/tasks/{task}/versions", content=bundle)
    if answer.status_code not in (200, 201):
        raise SystemExit(f"registering {task} failed: {answer.status_code} {answer.text}")
