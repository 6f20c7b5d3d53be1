"""An HTTP worker: one process with one event loop; all workers share one listening socket."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf

import structlog
import uvloop
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp
from uvicorn.config import Config

from peterrec.model.errors import PeterRecError
from peterrec.model.files.backbone_info import read_backbones
from peterrec.patches.redis.client import open_redis
from peterrec.patches.registry.registry import Registry
from peterrec.service.http.activity import Activity
from peterrec.service.http.app import Application
from peterrec.service.http.auth import Authenticator
from peterrec.service.http.context import AdminContext, PredictContext, Readiness
from peterrec.service.http.fetching import BundleSources
from peterrec.service.http.methods import PAGES
from peterrec.service.http.peers import Peers
from peterrec.service.http.prefix import UnderPrefix
from peterrec.service.http.profiler import ProcessName, Profiler
from peterrec.service.http.quotas import TenantQuotas
from peterrec.service.http.refusal_counts import RefusalCounts
from peterrec.service.http.refusal_log import RefusalLog
from peterrec.service.http.seeing import Seeing
from peterrec.service.http.server import DrainingServer
from peterrec.service.http.tokens import Issuer, SigningKeys, TokenVerifier
from peterrec.service.http.upload import remove_abandoned_uploads
from peterrec.service.predict.admission import Admission
from peterrec.service.predict.catalogs import Catalogs
from peterrec.service.predict.device_link import DeviceLink
from peterrec.service.predict.feedback import PredictionIds
from peterrec.service.predict.filters import ItemFilters
from peterrec.service.predict.item_ids import ItemVocabulary
from peterrec.service.predict.loop_shares import LoopShares
from peterrec.service.predict.predictor import Predictor
from peterrec.service.predict.quality import AnswerSampler
from peterrec.service.predict.registered_versions import RegisteredVersions
from peterrec.service.predict.remembered import RememberedAnswers
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.messages import TableUpdate
from peterrec.service.protocol.quota_table import QuotaTable
from peterrec.service.settings import Settings
from peterrec.service.system.addresses import local_url
from peterrec.service.system.descriptors import connection_limit
from peterrec.service.system.memory import give_back_memory, sparing_the_collector
from peterrec.service.system.priority import give_way_to_device
from peterrec.service.system.pulse import Pulse
from peterrec.service.system.reachable import Reachable
from peterrec.service.telemetry.events import Emit
from peterrec.service.telemetry.sender import EventSender
from peterrec.service.telemetry.trace_context import Sampler

log = structlog.get_logger()

KEEP_ALIVE_S = 75
"""Seconds: longer than the idle time after which load balancers and clients close connections."""

WELCOME_TIMEOUT_S = 1.0
"""Seconds that a worker waits for its table before it accepts requests.

So a restarted worker has the table at its first request. At a cold start, a worker soon answers
that it is not ready.
"""

REDIS_TIMEOUT_S = 3.0
"""Seconds for a command; with one retry, a caller learns within seconds that Redis is away."""

NOTE_USES_INTERVAL_S = 10.0
"""Seconds between two notes of when keys were used last, which is their precision."""

GRPC_DRAIN_S = 3.0
"""Seconds in which gRPC calls in progress may finish after the last request over HTTP has."""

BEAT_INTERVAL_S = 0.5
"""Seconds between two signs that the event loop turns."""

GIVE_BACK_INTERVAL_S = 2.0
"""Seconds between two returns of freed memory to the system while the table changes."""


CORS_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
CORS_REQUEST_HEADERS = (
    "Authorization",
    "Content-Encoding",
    "Content-Type",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "Traceparent",
    "Tracestate",
    "X-API-Key",
    "X-Priority",
    "X-Request-Id",
    "X-Request-Timeout-Ms",
    "X-Server-Timing",
)
CORS_ANSWER_HEADERS = (
    "ETag",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Server-Timing",
    "X-Bundle-Digest",
    "X-Request-Id",
)

CORS_MAX_AGE_S = 600
"""Seconds for which a browser may keep the answer to a preflight."""


@dataclass(frozen=True, slots=True)
class Pulses:
    """Where this worker shows its progress, and where the device process shows its own."""

    own: Pulse
    device: Pulse


def run_worker(settings: Settings, listener: socket.socket, pulses: Pulses) -> None:
    """Serve until SIGTERM, and until the requests in progress are answered. Blocks."""
    pulses.own.begin()
    give_way_to_device()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listener, pulses))


async def _serve(settings: Settings, listener: socket.socket, pulses: Pulses) -> None:
    table = TaskTable()
    verifier = _token_verifier(settings)
    authenticator = Authenticator(settings.auth == "on", verifier)
    catalogs = Catalogs()
    quota_table = QuotaTable.open(settings.quota_table, settings.worker_count)
    quotas = TenantQuotas(quota_table)
    filtering = ThreadPoolExecutor(1, "filters")  # of full priority: it may hold the interpreter

    def on_update(update: TableUpdate) -> None:
        if update.keys is not None:
            authenticator.replace_keys(update.keys)
        if update.tenants is not None:
            authenticator.replace_tenants(each.tenant for each in update.tenants)
            quotas.replace(update.tenants)
        catalogs.prefetch(update.bundles)

    backbone, *others = read_backbones(settings.backbone_dir)
    vocabulary = ItemVocabulary(backbone.items, backbone.spec.max_len)
    link = DeviceLink(
        settings.device_endpoint,
        table,
        max_rows=settings.max_queue_rows,
        on_update=on_update,
        pulse=pulses.device,
    )
    remove_abandoned_uploads(settings.upload_dir)
    events = EventSender(settings.metrics_endpoint)
    refusals = RefusalCounts(events.emit)
    assert settings.redis_url, "the supervisor sets the registry's URL"
    redis = open_redis(settings.redis_url, retries=1, timeout_s=REDIS_TIMEOUT_S)
    registry = Registry(redis, settings.redis_prefix, link.knowledge, settings.acknowledgement)
    readiness = Readiness()
    remembered = RememberedAnswers(PredictionIds(), registry.outcomes)
    admin = AdminContext(
        table=table,
        authenticator=authenticator,
        link=link,
        registry=registry,
        backbone=backbone,
        upload_dir=settings.upload_dir,
        bundle_size_limit_bytes=settings.bundle_size_limit_bytes,
        activity=Activity(
            local_url(settings.metrics_host or settings.host, settings.metrics_port),
            settings.metrics_token,
        ),
        readiness=readiness,
        quotas=quotas,
        profiler=_profiler(settings, pulses, link),
        others=tuple(others),
        reachable=Reachable(settings.webhook_networks),
        sources=BundleSources(settings.bundle_sources, settings.bundle_source_timeout_s),
    )
    predictions = PredictContext(
        table=table,
        authenticator=authenticator,
        predictor=Predictor(
            vocabulary,
            table,
            link,
            catalogs,
            events.emit,
            settings.max_explain_rows,
            ItemFilters(filtering),
            _answer_sampler(settings, events.emit),
            [ItemVocabulary(each.items, each.spec.max_len) for each in others],
        ),
        emit=events.emit,
        request_timeout_ms=settings.request_timeout_ms,
        registered=RegisteredVersions(table, registry),
        admission=Admission(link.places),
        remembered=remembered,
        timeout_limit_ms=settings.request_timeout_limit_ms,
        refusals=refusals,
        quotas=quotas,
        seeing=_seeing(settings, events),
        shares=LoopShares(link.places.weight),
    )
    app = Application(admin, predictions)
    await link.start()
    if verifier is not None:
        verifier.keys.start()
    tidying = asyncio.create_task(_give_back_regularly(table))
    noting = asyncio.create_task(_note_uses_regularly(authenticator, registry))
    beating = asyncio.create_task(_beat_regularly(pulses.own))
    remembering = asyncio.create_task(remembered.run())
    try:
        await link.welcomed(WELCOME_TIMEOUT_S)
        with suppress(TimeoutError):  # Redis may be away: then there are no ids until it is back
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                await remembered.look_for_secret()
        _ = app.methods  # made of the OpenAPI document, which takes too long for a request
        config = _uvicorn_config(_as_seen_from_outside(app, settings), settings)
        peers = Peers(connection_limit(), settings.peer_connections)
        log_of_refusals = RefusalLog(refusals.count)
        server = DrainingServer(
            config, listener, readiness.drain, settings.drain_delay_s, peers, log_of_refusals
        )
        async with _grpc_server(settings, admin, predictions):
            with sparing_the_collector():
                pulses.own.end_start()
                await server.serve()
    finally:
        background = (tidying, noting, beating, remembering)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if verifier is not None:
            await verifier.keys.close()
        await _note_uses(authenticator, registry)
        await link.close()
        await catalogs.close()
        filtering.shutdown(cancel_futures=True)
        await redis.aclose()
        refusals.flush()
        await asyncio.to_thread(events.close)
        quota_table.close()


def _answer_sampler(settings: Settings, emit: Emit) -> AnswerSampler | None:
    """Make what looks at a sample of the answers, unless the settings forbid it."""
    if settings.sample_answers == "off":
        return None
    return AnswerSampler(emit, sees_sensitive=settings.sample_answers == "all")


@asynccontextmanager
async def _grpc_server(
    settings: Settings, admin: AdminContext, predictions: PredictContext
) -> AsyncIterator[None]:
    """Answer gRPC within the block if the settings name a port, and drain it at the end.

    Importing gRPC takes 20 MB of memory, so it is left to those who use it.
    """
    if settings.grpc_port is None:
        yield
        return
    from peterrec.service.grpc.server import GrpcServer

    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    limit = min(connection_limit() // 2, settings.peer_connections)
    server = GrpcServer(admin, predictions, f"{host}:{settings.grpc_port}", limit)
    await server.start()
    try:
        yield
    finally:
        await server.stop(GRPC_DRAIN_S)


def _profiler(settings: Settings, pulses: Pulses, link: DeviceLink) -> Profiler | None:
    """Make what profiles this server's processes, if the settings allow it."""
    if not settings.profiling:
        return None
    lock = settings.device_endpoint.with_name("profile.lock")
    find: dict[ProcessName, Callable[[], int]] = {
        "device": lambda: pulses.device.pid,
        "worker": os.getpid,
        "supervisor": os.getppid,
    }
    return Profiler(lock, find, link)


def _seeing(settings: Settings, events: EventSender) -> Seeing:
    """Make what notes where requests spend their time, as far as the settings ask for it."""
    return Seeing(
        events.emit,
        Sampler(settings.trace_share) if settings.trace_endpoint else None,
        settings.slow_request_ms / 1000 or inf,
        names_requests=settings.log_format == "json",
    )


async def _beat_regularly(pulse: Pulse) -> None:
    """Show that the event loop turns."""
    while True:
        pulse.beat()
        await asyncio.sleep(BEAT_INTERVAL_S)


async def _give_back_regularly(table: TaskTable) -> None:
    """Return the memory that uploads and updates needed for a moment to the system.

    Runs in a thread, since it takes a millisecond.
    """
    version = table.version
    while True:
        await asyncio.sleep(GIVE_BACK_INTERVAL_S)
        if table.version != version:
            version = table.version
            await asyncio.to_thread(give_back_memory)


def _token_verifier(settings: Settings) -> TokenVerifier | None:
    """Make what verifies tokens, if the settings name their issuer."""
    if not (settings.oidc_issuer and settings.oidc_audience and settings.oidc_jwks_url):
        return None
    issuer = Issuer(
        settings.oidc_issuer,
        settings.oidc_audience,
        settings.oidc_tenant_claim,
        settings.oidc_scope_claim,
    )
    return TokenVerifier(issuer, SigningKeys(settings.oidc_jwks_url, settings.oidc_refresh_s))


async def _note_uses_regularly(authenticator: Authenticator, registry: Registry) -> None:
    while True:
        await asyncio.sleep(NOTE_USES_INTERVAL_S)
        await _note_uses(authenticator, registry)


async def _note_uses(authenticator: Authenticator, registry: Registry) -> None:
    """Tell the registry when keys were used. What can't be told now is lost, as it is a hint."""
    with suppress(PeterRecError):
        await registry.keys.note_uses(authenticator.take_uses())


def _as_seen_from_outside(app: Application, settings: Settings) -> ASGIApp:
    shared = _with_cors(app, settings)
    if not settings.root_path:
        return shared
    return UnderPrefix(shared, settings.root_path, [*app.openapi()["paths"], *PAGES])


def _with_cors(app: Application, settings: Settings) -> ASGIApp:
    """Let pages of the origins in the settings call the server from browsers."""
    if not settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_methods=CORS_METHODS,
        allow_headers=CORS_REQUEST_HEADERS,
        expose_headers=CORS_ANSWER_HEADERS,
        max_age=CORS_MAX_AGE_S,
    )


def _uvicorn_config(app: ASGIApp, settings: Settings) -> Config:
    return Config(
        app,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(max(1, settings.drain_timeout_s)),
    )
