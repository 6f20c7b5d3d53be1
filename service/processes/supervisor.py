"""Starts the processes of a server, restarts those that die, and stops them in order.

Supervisor → embedded Redis, one device process, N workers. The supervisor owns the listening
socket, so no connection is lost while a worker restarts, and it keeps the metrics of all processes.
"""

import asyncio
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog
from prometheus_client import start_http_server

from peterrec.model.disk import make_folder, refusals, require_writable_folder
from peterrec.model.files.backbone_info import read_info
from peterrec.patches.bundle.signatures import TrustedKeys
from peterrec.patches.errors import EmbeddedRedisFailed
from peterrec.patches.identity import DEFAULT_TENANT
from peterrec.patches.redis.client import open_redis
from peterrec.patches.redis.embedded import EmbeddedRedis
from peterrec.patches.redis.sockets import make_socket_folder
from peterrec.patches.registry.registry import Registry
from peterrec.service.errors import AddressInUse, NeverReady
from peterrec.service.processes.children import Child, ChildCommand
from peterrec.service.settings import Settings
from peterrec.service.system.program import peterrec
from peterrec.service.telemetry.events import ChildRestarted, Emit
from peterrec.service.telemetry.metrics import Metrics
from peterrec.service.telemetry.receiver import EventReceiver
from peterrec.service.telemetry.sender import EventSender

log = structlog.get_logger()

BACKLOG = 2048
READY_POLL_S = 0.1
READY_PROBES_PER_WORKER = 2
REDIS_POLL_S = 0.2
DEVICE_STOP_TIMEOUT_S = 15.0
WORKER_STOP_MARGIN_S = 5.0
MAX_DEATHS_BEFORE_READY = 3
"""A server that has not been ready yet stops after this many deaths of one child."""

ALLOCATOR = {"MALLOC_ARENA_MAX": "1"}
"""One arena for glibc's malloc. With an arena for each thread that verifies bundles, freed memory
stays fragmented in all of them: a kilobyte or more for each registered bundle."""

FIRST_KEY_NAME = "first key"


@dataclass(frozen=True, slots=True)
class Foundation:
    """What the child processes need. ``settings`` are complete: every address is set."""

    settings: Settings
    listener: socket.socket
    emit: Emit


class StopRequest:
    """Set by SIGTERM. SIGINT, or a second SIGTERM, also skips the drain delay."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.is_set = asyncio.Event()
        self.is_hurried = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, self._on_terminate)
        loop.add_signal_handler(signal.SIGINT, self._on_interrupt)

    def _on_terminate(self) -> None:
        if self.is_set.is_set():
            self.is_hurried.set()
        self.is_set.set()

    def _on_interrupt(self) -> None:
        self.is_hurried.set()
        self.is_set.set()


def run_server(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, and until all requests in progress are answered. Blocks."""
    read_info(settings.backbone_dir)
    if settings.trusted_keys is not None:
        TrustedKeys.read([settings.trusted_keys])
    for folder in (settings.data_dir, settings.upload_dir):
        require_writable_folder(folder)
        make_folder(folder)
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = StopRequest(asyncio.get_running_loop())
    async with AsyncExitStack() as stack:
        foundation = await _prepare(settings, stack)
        device = Child(_command("device", foundation, ["run-device"]), foundation.emit)
        fd = foundation.listener.fileno()
        worker = _command("worker", foundation, ["run-worker", "--fd", str(fd)], [fd])
        workers = [Child(worker, foundation.emit) for _ in range(settings.worker_count)]
        for child in (device, *workers):
            child.start()
        try:
            await _until_ready(foundation, [device, *workers], stop)
            await stop.is_set.wait()
        finally:
            await _stop(foundation, device, workers, stop)


async def _prepare(settings: Settings, stack: AsyncExitStack) -> Foundation:
    """Open what the children need; the stack closes it in reverse order."""
    _clear_uploads(settings.upload_dir)
    run_dir = stack.enter_context(_run_dir(settings.data_dir))
    listener = stack.enter_context(closing(_listen(settings.host, settings.port)))
    endpoint = f"ipc://{run_dir}/metrics"
    metrics = Metrics()
    metrics_port = stack.enter_context(_metrics_server(settings, metrics))
    stack.enter_context(closing(EventReceiver(endpoint, metrics.record)))
    events = stack.enter_context(closing(EventSender(endpoint)))
    url = settings.redis_url
    if url is None:
        url = await stack.enter_async_context(_embedded_redis(settings.data_dir, events.emit))
    if settings.redis_url is None and settings.auth == "on":
        await _show_first_key(url, settings.redis_prefix)
    complete = {
        "redis_url": url,
        "device_endpoint": f"ipc://{run_dir}/device",
        "metrics_endpoint": endpoint,
        "port": listener.getsockname()[1],
        "metrics_port": metrics_port,
    }
    return Foundation(settings.model_copy(update=complete), listener, events.emit)


def _command(
    kind: str, foundation: Foundation, arguments: Sequence[str], inherited: Sequence[int] = ()
) -> ChildCommand:
    return ChildCommand(
        kind,
        peterrec(*arguments),
        ALLOCATOR | foundation.settings.to_environment(),
        inherited,
    )


async def _until_ready(
    foundation: Foundation, children: Sequence[Child], stop: StopRequest
) -> None:
    """Wait for /readyz and print the server's address; raise NeverReady if a child can't start."""
    url = local_url(foundation.settings.host, foundation.settings.port)
    probes = READY_PROBES_PER_WORKER * foundation.settings.worker_count
    fresh = httpx.Limits(max_keepalive_connections=0)  # each probe may meet another worker
    async with httpx.AsyncClient(base_url=url, limits=fresh, trust_env=False) as client:
        while not (stop.is_set.is_set() or await _is_ready(client, probes)):
            for child in children:
                if child.has_refused or child.deaths >= MAX_DEATHS_BEFORE_READY:
                    raise NeverReady(child.kind)
            await asyncio.sleep(READY_POLL_S)
    if not stop.is_set.is_set():
        _announce(foundation, url)


async def _is_ready(client: httpx.AsyncClient, probes: int) -> bool:
    """True if this many probes in a row find a worker that is ready."""
    try:
        return all([(await client.get("/readyz")).status_code == 200 for _ in range(probes)])
    except httpx.TransportError:
        return False


def _announce(foundation: Foundation, url: str) -> None:
    settings = foundation.settings
    print(f"PeterRec serves on {url} (documentation: {url}/docs)")
    print(f"Metrics: {local_url(settings.host, settings.metrics_port)}/metrics", flush=True)


async def _stop(
    foundation: Foundation, device: Child, workers: Sequence[Child], stop: StopRequest
) -> None:
    """Drain the workers, then end the device process. Redis and the metrics are stopped later."""
    foundation.listener.close()
    settings = foundation.settings
    for worker in workers:
        worker.terminate()
    hurry = asyncio.create_task(_hurry(workers, stop))
    limit_s = settings.drain_delay_s + settings.drain_timeout_s + WORKER_STOP_MARGIN_S
    await asyncio.gather(*(worker.wait(limit_s) for worker in workers))
    hurry.cancel()
    await asyncio.gather(hurry, return_exceptions=True)
    device.terminate()
    await device.wait(DEVICE_STOP_TIMEOUT_S)
    log.info("stopped")


async def _hurry(workers: Sequence[Child], stop: StopRequest) -> None:
    await stop.is_hurried.wait()
    for worker in workers:
        worker.terminate(signal.SIGINT)


@contextmanager
def _run_dir(data_dir: Path) -> Iterator[Path]:
    """A private folder for the sockets of this server's processes."""
    folder = make_socket_folder(data_dir)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clear_uploads(folder: Path) -> None:
    with refusals(folder, doing="cleared"):
        for left_over in folder.glob("*.upload"):
            left_over.unlink()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise AddressInUse(host, port, error) from error


@contextmanager
def _metrics_server(settings: Settings, metrics: Metrics) -> Iterator[int]:
    """Serve /metrics from a thread; yields the port."""
    try:
        server, thread = start_http_server(
            settings.metrics_port, settings.host, registry=metrics.registry
        )
    except OSError as error:
        raise AddressInUse(settings.host, settings.metrics_port, error) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@asynccontextmanager
async def _embedded_redis(data_dir: Path, emit: Emit) -> AsyncIterator[str]:
    """A private Redis, restarted when it dies; yields its URL.

    It ends with the thread that started it, so it runs in its own thread.
    """
    loop = asyncio.get_running_loop()
    redis = EmbeddedRedis(data_dir / "redis")
    with ThreadPoolExecutor(1, "redis") as thread:
        url = await loop.run_in_executor(thread, redis.start)
        keeper = asyncio.create_task(_keep_redis(redis, thread, emit))
        try:
            yield url
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await loop.run_in_executor(thread, redis.stop)


async def _keep_redis(redis: EmbeddedRedis, thread: ThreadPoolExecutor, emit: Emit) -> None:
    while True:
        await asyncio.sleep(REDIS_POLL_S)
        if redis.is_running:
            continue
        log.error("child_died", child="redis")
        emit(ChildRestarted("redis"))
        try:
            await asyncio.get_running_loop().run_in_executor(thread, redis.restart)
        except EmbeddedRedisFailed as error:
            log.error("redis_failed", reason=error.message)


async def _show_first_key(redis_url: str, prefix: str) -> None:
    """Create a key if there is none, and print it now, since it can't be read anywhere later."""
    redis = open_redis(redis_url)
    try:
        created = await Registry(redis, prefix).keys.ensure_first(DEFAULT_TENANT, FIRST_KEY_NAME)
    finally:
        await redis.aclose()
    if created is not None:
        print("┌─ API key of this server, with the scopes predict and admin. Shown only this once:")
        print("│")
        print(f"│  {created[0]}")
        print("│")
        print("└─ `peterrec keys create` makes more. Only hashes are stored.", flush=True)


def local_url(host: str, port: int) -> str:
    """Return the URL by which a program on this machine reaches a listening address."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # not bound here
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"
