"""Starts the processes of a server, restarts those that die, and stops them in order.

Supervisor → embedded Redis, one device process, N workers. The supervisor owns the listening
socket, so no connection is lost while a worker restarts, and it keeps the metrics of all processes.
"""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING
from uuid import uuid4

import httpx
import structlog

from peterrec.model.disk import make_folder, refusals, require_writable_folder
from peterrec.model.files.backbone_info import read_backbones
from peterrec.patches.bundle.signatures import TrustedKeys
from peterrec.patches.errors import EmbeddedRedisFailed, RegistryLost, SnapshotCorrupt
from peterrec.patches.identity import DEFAULT_TENANT
from peterrec.patches.redis.client import open_redis
from peterrec.patches.redis.embedded import EmbeddedRedis
from peterrec.patches.redis.sockets import make_socket_folder
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.records import RegistrySnapshot
from peterrec.patches.registry.registry import Registry
from peterrec.service.errors import AddressInUse, NeverReady, TracingMissing
from peterrec.service.processes.children import Child, ChildCommand
from peterrec.service.processes.liveness import RedisSilence
from peterrec.service.settings import PREFIX, Settings
from peterrec.service.system.addresses import local_url
from peterrec.service.system.descriptors import raise_descriptor_limit
from peterrec.service.system.program import peterrec
from peterrec.service.system.reachable import Reachable
from peterrec.service.system.readiness import tell_systemd
from peterrec.service.telemetry.events import DIED, ChildRestarted, Emit, Event
from peterrec.service.telemetry.metrics import Metrics
from peterrec.service.telemetry.metrics_server import start_metrics_server
from peterrec.service.telemetry.receiver import EventReceiver
from peterrec.service.telemetry.sender import EventSender
from peterrec.service.webhooks.deliverer import WebhookDeliverer
from peterrec.service.webhooks.sender import HookSender

if TYPE_CHECKING:
    from peterrec.service.telemetry.tracing import Tracer

FIRST_KEY = """\
┌─ API key of this server, with the scopes predict, vectors, admin and operator.
│  It is shown only this once:
│
│  {}
│
└─ `peterrec keys create` makes more. Only hashes are stored."""
"""What is printed where a server makes the first key of a registry."""

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

REDIS_TIMEOUT_S = 5.0
"""Seconds for a command of what tells webhooks of changes; longer than a wait for a change."""

DAY_S = 86_400.0

DEVICE_PULSE, TEMPORARY = "device.pulse", "tmp"
"""In the server's folder: where the device process shows its progress, and the children's folder
for temporary files. So nothing of a child that was killed is left once the server has ended."""


@dataclass(frozen=True, slots=True)
class Foundation:
    """What the child processes need. ``settings`` are complete: every address is set.

    ``run_dir`` is a folder of this server alone, which ends with it. ``metrics_token`` is what
    workers read the metrics by if a token is needed; it ends with the server, and is not the one
    of the settings.
    """

    settings: Settings
    listener: socket.socket
    emit: Emit
    run_dir: Path
    metrics_token: str | None = None


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
    read_backbones(settings.backbone_dir)
    if settings.trusted_keys is not None:
        TrustedKeys.read([settings.trusted_keys])
    raise_descriptor_limit()
    for folder in (settings.data_dir, settings.upload_dir):
        require_writable_folder(folder)
        make_folder(folder)
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = StopRequest(asyncio.get_running_loop())
    async with AsyncExitStack() as stack:
        foundation = await _prepare(settings, stack)
        device = Child(_device_command(foundation), foundation.emit)
        workers = [
            Child(_worker_command(foundation, number), foundation.emit)
            for number in range(settings.worker_count)
        ]
        for child in (device, *workers):
            child.start()
        await stack.enter_async_context(_webhooks(foundation))
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
    endpoint = run_dir / "metrics"
    metrics = Metrics()
    token = None if settings.metrics_token is None else token_urlsafe()
    metrics_port = stack.enter_context(_metrics_server(settings, metrics, token))
    record = _recording(metrics, stack.enter_context(_tracer(settings)))
    stack.enter_context(closing(EventReceiver(endpoint, record)))
    events = stack.enter_context(closing(EventSender(endpoint)))
    grpc_port = None
    if settings.grpc_port is not None:
        held = stack.enter_context(closing(reserve_port(settings.host, settings.grpc_port)))
        grpc_port = held.getsockname()[1]
    url = settings.redis_url
    if url is None:
        url = await stack.enter_async_context(_embedded_redis(settings, events.emit))
    if settings.redis_url is None and settings.auth == "on":
        await _show_first_key(url, settings)
    complete = {
        "redis_url": url,
        "device_endpoint": run_dir / "device",
        "metrics_endpoint": endpoint,
        "port": listener.getsockname()[1],
        "metrics_port": metrics_port,
        "grpc_port": grpc_port,
    }
    return Foundation(settings.model_copy(update=complete), listener, events.emit, run_dir, token)


def _device_command(foundation: Foundation) -> ChildCommand:
    pulse = foundation.run_dir / DEVICE_PULSE
    return _command("device", foundation, ["run-device", "--pulse", str(pulse)], pulse)


def _worker_command(foundation: Foundation, number: int) -> ChildCommand:
    pulse, fd = foundation.run_dir / f"worker-{number}.pulse", foundation.listener.fileno()
    arguments = ["run-worker", "--fd", str(fd), "--pulse", str(pulse)]
    arguments += ["--device-pulse", str(foundation.run_dir / DEVICE_PULSE)]
    return _command("worker", foundation, arguments, pulse, [fd])


def _command(
    kind: str,
    foundation: Foundation,
    arguments: Sequence[str],
    pulse: Path,
    inherited: Sequence[int] = (),
) -> ChildCommand:
    own = {"TMPDIR": str(foundation.run_dir / TEMPORARY)}
    if foundation.metrics_token is not None:
        own[f"{PREFIX}METRICS_TOKEN"] = foundation.metrics_token
    return ChildCommand(
        kind,
        peterrec(*arguments),
        ALLOCATOR | foundation.settings.to_environment() | own,
        pulse,
        foundation.settings.hang_limit_s,
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


def _tell(settings: Settings, text: str, event: str, **values: str) -> None:
    """Print what people look for at a start; in a log of JSON objects, as one of them."""
    if settings.log_format == "json":  # whatever the level: a key can't be read anywhere later
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        text = json.dumps({**values, "event": event, "level": "info", "timestamp": at})
    print(text, flush=True)


def _announce(foundation: Foundation, url: str) -> None:
    settings = foundation.settings
    where = {"api": url, "console": f"{url}/console", "documentation": f"{url}/docs"}
    if settings.grpc_port is not None:
        where["grpc"] = local_url(settings.host, settings.grpc_port).removeprefix("http://")
    metrics = local_url(settings.metrics_host or settings.host, settings.metrics_port)
    where["metrics"] = f"{metrics}/metrics"
    lines = [f"PeterRec serves on {url}", *(f"  {key}: {value}" for key, value in where.items())]
    _tell(settings, "\n".join(lines), "serving", **where)
    tell_systemd("READY=1")


async def _stop(
    foundation: Foundation, device: Child, workers: Sequence[Child], stop: StopRequest
) -> None:
    """Drain the workers, then end the device process. Redis and the metrics are stopped later."""
    tell_systemd("STOPPING=1")
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
    """A private folder for sockets and temporary files of this server's processes."""
    folder = make_socket_folder(data_dir)
    try:
        (folder.path / TEMPORARY).mkdir()
        yield folder.path
    finally:
        folder.remove()


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


def reserve_port(host: str, port: int) -> socket.socket:
    """Bind a port that all workers will listen on, so that no other server takes it.

    A port on which any other program listens is refused: the kernel would give that program some of
    the connections if it is the same user's. Nobody connects to the socket that is returned.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if port:
            with closing(socket.socket(family, kind)) as alone:
                alone.bind(address)
        held = socket.socket(family, kind)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except OSError as error:
        raise AddressInUse(host, port, error) from error
    return held


@contextmanager
def _tracer(settings: Settings) -> "Iterator[Tracer | None]":
    """What sends traces, if the settings say where to. Importing OpenTelemetry takes 20 MB."""
    if settings.trace_endpoint is None:
        yield None
        return
    try:
        from peterrec.service.telemetry.tracing import Tracer, open_exporter
    except ModuleNotFoundError as error:
        raise TracingMissing(error.name) from error
    with closing(Tracer(open_exporter(settings.trace_endpoint))) as tracer:
        yield tracer


def _recording(metrics: Metrics, tracer: "Tracer | None") -> Emit:
    """Return what takes the events of all processes."""
    if tracer is None:
        return metrics.record

    def record(event: Event) -> None:
        metrics.record(event)
        tracer.record(event)

    return record


@contextmanager
def _metrics_server(settings: Settings, metrics: Metrics, token: str | None) -> Iterator[int]:
    """Serve /metrics from a thread; yields the port. With a token, also to its senders."""
    tokens = [each for each in (settings.metrics_token, token) if each is not None]
    host = settings.metrics_host or settings.host
    try:
        server, thread = start_metrics_server(
            settings.metrics_port, host, metrics.registry, tokens, metrics.calls.encoded
        )
    except OSError as error:
        raise AddressInUse(host, settings.metrics_port, error) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@asynccontextmanager
async def _embedded_redis(settings: Settings, emit: Emit) -> AsyncIterator[str]:
    """A private Redis, restarted when it dies or hangs; yields its URL.

    It ends with the thread that started it, so it runs in its own thread.
    """
    loop = asyncio.get_running_loop()
    redis = EmbeddedRedis(settings.data_dir / "redis")
    with ThreadPoolExecutor(1, "redis") as thread:
        url = await loop.run_in_executor(thread, redis.start)
        keeper = asyncio.create_task(_keep_redis(redis, thread, settings, emit))
        try:
            yield url
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await loop.run_in_executor(thread, redis.stop)


async def _keep_redis(
    redis: EmbeddedRedis, thread: ThreadPoolExecutor, settings: Settings, emit: Emit
) -> None:
    loop, silence = asyncio.get_running_loop(), RedisSilence(settings.hang_limit_s)
    while True:
        await asyncio.sleep(REDIS_POLL_S)
        reason = DIED
        if redis.is_running:
            reason = await loop.run_in_executor(thread, silence.look, redis)
            if not reason:
                continue
            log.error("child_hangs", child="redis", reason=reason)
            redis.kill()
        log.error("child_died", child="redis")
        emit(ChildRestarted("redis", reason))
        try:
            await loop.run_in_executor(thread, redis.restart)
        except EmbeddedRedisFailed as error:
            log.error("redis_failed", reason=error.message)


@asynccontextmanager
async def _webhooks(foundation: Foundation) -> AsyncIterator[None]:
    """Tell webhooks of changes within the block, while this replica holds the lease for it.

    It runs in the supervisor, which has nothing to do otherwise: no receiver and no name server
    can hold up requests here.
    """
    settings = foundation.settings
    assert settings.redis_url, "it was set before the children were started"
    redis = open_redis(settings.redis_url, retries=1, timeout_s=REDIS_TIMEOUT_S)
    registry = Registry(redis, settings.redis_prefix)
    sender = HookSender(Reachable(settings.webhook_networks))
    give_up_s = settings.webhook_give_up_days * DAY_S
    deliverer = WebhookDeliverer(registry, sender, foundation.emit, uuid4().hex, give_up_s)
    delivering = asyncio.create_task(deliverer.run())
    try:
        yield
    finally:
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)
        await sender.close()
        await registry.close()


async def _show_first_key(redis_url: str, settings: Settings) -> None:
    """Create a key if there is none, and print it now, since it can't be read anywhere later.

    Nothing is created in place of a registry that was lost: its keys go on being valid.
    """
    registry = Registry(open_redis(redis_url), settings.redis_prefix)
    try:
        await registry.feed.snapshot(_known(settings.data_dir))
        created = await registry.keys.ensure_first(DEFAULT_TENANT, FIRST_KEY_NAME)
    except RegistryLost as error:
        log.error(error.code, reason=error.message, hint=error.hint)
        return
    finally:
        await registry.close()
    if created is not None:
        _tell(settings, FIRST_KEY.format(created[0]), "first_key_created", api_key=created[0])


def _known(data_dir: Path) -> RegistrySnapshot | None:
    """Return what this server knew of its registry when it last ran."""
    folder = data_dir / "cache"
    try:
        return BlobCache(folder).load_snapshot() if folder.is_dir() else None
    except SnapshotCorrupt as error:
        log.error(error.code, reason=error.message)
        return None
