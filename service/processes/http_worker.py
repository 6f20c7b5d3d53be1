"""An HTTP worker: one process with one event loop; all workers share one listening socket."""

import asyncio
import os
import socket

import structlog
import uvloop
from starlette.types import ASGIApp
from uvicorn.config import Config

from peterrec.model.files.backbone_info import read_info
from peterrec.patches.redis.client import open_redis
from peterrec.patches.registry.registry import Registry
from peterrec.service.http.app import Application
from peterrec.service.http.auth import Authenticator
from peterrec.service.http.context import AdminContext, PredictContext, Readiness
from peterrec.service.http.server import DrainingServer
from peterrec.service.predict.catalogs import Catalogs
from peterrec.service.predict.device_link import DeviceLink
from peterrec.service.predict.item_ids import ItemVocabulary
from peterrec.service.predict.predictor import Predictor
from peterrec.service.predict.registered_versions import RegisteredVersions
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.messages import TableUpdate
from peterrec.service.settings import Settings
from peterrec.service.system.memory import give_back_memory, sparing_the_collector
from peterrec.service.telemetry.sender import EventSender

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

GIVE_BACK_INTERVAL_S = 2.0
"""Seconds between two returns of freed memory to the system while the table changes."""


def run_worker(settings: Settings, listener: socket.socket) -> None:
    """Serve until SIGTERM, and until the requests in progress are answered. Blocks."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listener))


async def _serve(settings: Settings, listener: socket.socket) -> None:
    table = TaskTable()
    authenticator = Authenticator(settings.auth == "on")
    catalogs = Catalogs()

    def on_update(update: TableUpdate) -> None:
        if update.keys is not None:
            authenticator.replace_keys(update.keys)
        catalogs.prefetch(update.bundles)

    backbone = read_info(settings.backbone_dir)
    vocabulary = ItemVocabulary(backbone.items, backbone.spec.max_len)
    link = DeviceLink(
        settings.device_endpoint,
        f"worker-{os.getpid()}",
        table,
        max_rows=settings.max_queue_rows,
        on_update=on_update,
    )
    events = EventSender(settings.metrics_endpoint)
    assert settings.redis_url, "the supervisor sets the registry's URL"
    redis = open_redis(settings.redis_url, retries=1, timeout_s=REDIS_TIMEOUT_S)
    registry = Registry(redis, settings.redis_prefix)
    readiness = Readiness()
    app = Application(
        AdminContext(
            table=table,
            authenticator=authenticator,
            link=link,
            registry=registry,
            backbone=backbone,
            upload_dir=settings.upload_dir,
            bundle_size_limit_bytes=settings.bundle_size_limit_bytes,
            readiness=readiness,
        ),
        PredictContext(
            table=table,
            authenticator=authenticator,
            predictor=Predictor(
                vocabulary, table, link, catalogs, events.emit, settings.max_explain_rows
            ),
            emit=events.emit,
            request_timeout_ms=settings.request_timeout_ms,
            registered=RegisteredVersions(table, registry),
        ),
    )
    await link.start()
    tidying = asyncio.create_task(_give_back_regularly(table))
    try:
        await link.welcomed(WELCOME_TIMEOUT_S)
        config = _uvicorn_config(app, settings)
        with sparing_the_collector():
            await DrainingServer(config, listener, readiness.drain, settings.drain_delay_s).serve()
    finally:
        tidying.cancel()
        await asyncio.gather(tidying, return_exceptions=True)
        await link.close()
        await catalogs.close()
        await redis.aclose()
        await asyncio.to_thread(events.close)


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
