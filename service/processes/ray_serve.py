"""A Ray Serve application: each replica is a whole server, and Serve spreads requests over them.

``serve run peterrec.service.processes.ray_serve:application`` starts it. A replica's actor starts
the processes of one server (supervisor, workers, device process) and passes requests on to them.
All replicas follow one Redis.
"""
# pyright: reportMissingImports=false

import asyncio
import fcntl
import math
import re
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO
from urllib.parse import quote

import aiohttp
import httpx
from multidict import CIMultiDict
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from yarl import URL

from peterrec.model.disk import make_folder, refusals
from peterrec.model.errors import PeterRecError
from peterrec.service.errors import MalformedRequest, ReplicaFailed, SettingsInvalid
from peterrec.service.http.asgi import ClientLeft, Headers, RequestHead, send_error
from peterrec.service.settings import PREFIX, Settings, read_settings
from peterrec.service.system.program import peterrec

QUEUED_ROWS = "queued_rows"
"""What a replica reports to Serve: how many rows wait for its device."""

QUEUE_DEPTH = b"peterrec_queue_depth "
"""How the line of /metrics begins that says it."""

HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
    | {b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"}
)
"""Header fields that concern one connection only (RFC 9110, section 7.6.1)."""

VIA = (b"via", b"1.1 ray-serve")
"""Tells the server that requests of several callers share the connection."""

KEPT_S = 30.0
"""Seconds that an idle connection to a replica's own server waits for the next request."""

PROBE_TIMEOUT_S = 5.0
"""Seconds in which a replica's server must say that it lives, or show its metrics."""

STOP_S = 60.0
"""Seconds that Serve gives a replica for the requests in progress, and for the end of its
processes, before it kills the actor. Whatever is left then ends with it."""

MAX_ONGOING = 4096
"""Requests that Serve hands to one replica at a time. Its server bounds them itself, by rows, with
answers that say when to come again; in Serve's own queue they would wait without a bound."""

SERVING = re.compile(r'\bapi"?: "?(http[^\s",]+)')
METRICS = re.compile(r'\bmetrics"?: "?(http[^\s",]+)')
"""Addresses in what a server prints when it is ready: the one of its metrics is the last."""


class ReplicasByQueue:
    """How many replicas the rows need that wait for devices. Serve applies bounds and delays.

    ``rows_per_replica`` may wait at each replica; a batch has up to 256 rows.
    """

    def __init__(self, rows_per_replica: float = 512) -> None:
        self._rows_per_replica = rows_per_replica

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, object]]:
        """Return the wanted number of replicas, and no state."""
        reported = (context.aggregated_metrics or {}).get(QUEUED_ROWS, {})
        return max(1, math.ceil(sum(reported.values()) / self._rows_per_replica)), {}


class Forwarding:
    """An ASGI application that passes requests on to a server, and its answers back, by parts."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or take part in the start and the stop of the application."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._forward(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=PROBE_TIMEOUT_S),
            auto_decompress=False,
        )  # the server itself limits how long a request takes
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._session.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        head, send = RequestHead.read(scope), _leaving_out_id(send)
        with suppress(TimeoutError):  # which ends all this when the client has left
            async with asyncio.timeout(None) as presence:
                try:
                    answer = await self._asked(scope, _body(receive, presence), head)
                except PeterRecError as error:
                    await send_error(send, error, head.request_id)
                    return
                try:
                    await _pass_back(answer, send)
                finally:
                    answer.close()

    async def _asked(
        self, scope: Scope, body: AsyncIterator[bytes], head: RequestHead
    ) -> aiohttp.ClientResponse:
        """Send the request to the server, whose answer may begin before the body has ended."""
        _require_plain_id(scope, head)
        fields = [*_end_to_end(scope["headers"]), VIA]
        try:
            return await self._session.request(
                scope["method"],
                URL(self._url + _target(scope), encoded=True),
                headers=CIMultiDict((n.decode(), v.decode(errors="replace")) for n, v in fields),
                data=body if head.has_body else None,
                allow_redirects=False,
            )
        except aiohttp.ClientError as error:
            raise ReplicaFailed(f"does not answer: {error!r}") from error


def _require_plain_id(scope: Scope, head: RequestHead) -> None:
    """Refuse an id that a server would replace: Serve's proxy sends back whatever it was given."""
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    if given and given != head.request_id.encode():
        raise MalformedRequest(
            "X-Request-Id is no id: Ray Serve would answer with it, and the logs have another.",
            hint="Send up to 128 letters, digits, dots, colons, dashes and underscores, or none.",
        )


def _leaving_out_id(send: Send) -> Send:
    """Leave the request's id out of an answer, as Serve adds it itself."""

    async def send_rest(message: Message) -> None:
        if message["type"] == "http.response.start":
            fields = [each for each in message["headers"] if each[0] != b"x-request-id"]
            message = {**message, "headers": fields}
        await send(message)

    return send_rest


def _target(scope: Scope) -> str:
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    query: bytes = scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")


def _end_to_end(fields: Iterable[tuple[bytes, bytes]]) -> Headers:
    named = ((name.lower(), value) for name, value in fields)
    return [(name, value) for name, value in named if name not in HOP_BY_HOP]


async def _body(receive: Receive, presence: asyncio.Timeout) -> AsyncIterator[bytes]:
    """Yield the parts of a request's body; end ``presence`` if it ends too early."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            presence.reschedule(0)
            raise ClientLeft
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _pass_back(answer: aiohttp.ClientResponse, send: Send) -> None:
    """Send an answer as it comes."""
    status, fields = answer.status, _end_to_end(answer.raw_headers)
    await send({"type": "http.response.start", "status": status, "headers": fields})
    async for part in answer.content.iter_any():
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@dataclass(frozen=True, slots=True)
class OwnFolder:
    """A folder for the data of one replica of a machine; ``number`` counts from 0.

    Nobody else has the number while ``lock`` is open.
    """

    path: Path
    number: int
    lock: IO[str]

    @classmethod
    def take(cls, parent: Path) -> "OwnFolder":
        """Take the first folder that no other replica has: what an earlier one kept is in it."""
        for number in count():
            path = parent.absolute() / f"replica-{number}"
            make_folder(path)
            with refusals(path, doing="locked"):
                lock = (path / ".lock").open("w")
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    lock.close()
                    continue
            return cls(path, number, lock)
        raise AssertionError("numbers have no end")


class ReplicaServer:
    """The processes of one server. They end with this process, even if it is killed."""

    def __init__(self, process: Process, folder: OwnFolder, token: str | None) -> None:
        self._process = process
        self._folder = folder
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.url = ""
        self._metrics = ""

    @classmethod
    async def start(cls, settings: Settings) -> "ReplicaServer":
        """Start a server and wait until it is ready; ReplicaFailed if it ends before."""
        folder = OwnFolder.take(settings.data_dir)
        token = settings.metrics_token
        environment = _settings_of(settings, folder).to_environment()
        if token is not None:
            environment[f"{PREFIX}METRICS_TOKEN"] = token
        process = await asyncio.create_subprocess_exec(
            *peterrec("run-replica"),
            stdin=PIPE,
            stdout=PIPE,
            env=environment,
            start_new_session=True,
        )
        server = cls(process, folder, token)
        try:
            await server._until_ready()
        except BaseException:
            await server.stop()
            raise
        return server

    async def _until_ready(self) -> None:
        """Read the addresses that the server prints when it is ready, and all that it prints."""
        output = self._process.stdout
        assert output is not None
        async for line in output:
            text = line.decode(errors="replace")
            print(text, end="", flush=True)
            self.url = _found(SERVING, text) or self.url
            self._metrics = _found(METRICS, text)
            if self._metrics:
                self._reading = asyncio.create_task(_print_all(output))
                return
        raise ReplicaFailed(f"ended with status {await self._process.wait()} before it was ready")

    async def require_alive(self) -> None:
        """Raise ReplicaFailed if the server has ended or does not answer."""
        if self._process.returncode is not None:
            raise ReplicaFailed(f"ended with status {self._process.returncode}")
        await self._get(f"{self.url}/livez")

    async def queued_rows(self) -> float:
        """How many rows wait for the device."""
        return await asyncio.to_thread(_queue_depth, await self._get(self._metrics))

    async def stop(self) -> None:
        """Let the server answer what it has begun, and wait for its end."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        await self._process.wait()
        self._folder.lock.close()

    async def _get(self, url: str) -> bytes:
        try:
            async with httpx.AsyncClient(timeout=PROBE_TIMEOUT_S, trust_env=False) as client:
                return (await client.get(url, headers=self._headers)).content
        except httpx.TransportError as error:
            raise ReplicaFailed(f"does not answer: {error!r}") from error


def _settings_of(settings: Settings, folder: OwnFolder) -> Settings:
    """The settings of one replica among those of a machine.

    Serve sends nothing more to a replica that it stops, so there is no delay before the drain.
    """
    port = settings.metrics_port
    own = {
        "host": "127.0.0.1",
        "port": 0,
        "grpc_port": None,
        "metrics_host": settings.metrics_host or settings.host,
        "metrics_port": port and port + folder.number,
        "data_dir": folder.path,
        "backbone_dir": tuple(folder.absolute() for folder in settings.backbone_dir),
        "drain_delay_s": 0.0,
    }
    return settings.model_copy(update=own)


def _found(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""


async def _print_all(output: asyncio.StreamReader) -> None:
    async for line in output:
        print(line.decode(errors="replace"), end="", flush=True)


def _queue_depth(metrics: bytes) -> float:
    for line in metrics.splitlines():
        if line.startswith(QUEUE_DEPTH):
            return float(line.removeprefix(QUEUE_DEPTH))
    return 0.0


def replica_settings(given: dict[str, str]) -> Settings:
    """Read the settings, which all replicas share. SettingsInvalid if they can't share them."""
    settings = read_settings(**given)
    if settings.redis_url is None:
        raise SettingsInvalid(
            "replicas of Ray Serve need one registry, and no Redis is set.",
            hint=f"Set `redis_url`, or {PREFIX}REDIS_URL on every machine of the cluster.",
        )
    if settings.auth == "off":
        raise SettingsInvalid(
            "auth is off, and whoever reaches the proxies of Ray Serve could change every task.",
            hint="Leave auth on. `peterrec keys create` with `redis_url` makes the first key.",
        )
    return settings


@serve.deployment(
    name="PeterRec",
    max_ongoing_requests=MAX_ONGOING,
    graceful_shutdown_timeout_s=STOP_S,
    logging_config=LoggingConfig(enable_access_log=False),  # a line a request, with each path
    autoscaling_config=AutoscalingConfig(
        min_replicas=1,
        max_replicas=4,
        upscale_delay_s=15,
        downscale_delay_s=300,
        look_back_period_s=60,
        aggregation_function="max",
        policy=AutoscalingPolicy(policy_function=ReplicasByQueue),
    ),
)
@serve.ingress()
class Replica:
    """A replica: one server and what passes requests on to it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, given: dict[str, str]
    ) -> None:
        """Start a server with these settings, beside those of the environment."""
        self._server = await ReplicaServer.start(replica_settings(given))

    def __serve_build_asgi_app__(self) -> ASGIApp:  # Ray's name
        """Return the application; Serve calls this once the server is ready."""
        return Forwarding(self._server.url)

    async def check_health(self) -> None:
        """Fail if the server can't answer any more; Serve replaces a replica that fails."""
        await self._server.require_alive()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report how long the queue is."""
        return {QUEUED_ROWS: await self._server.queued_rows()}

    async def __del__(self) -> None:
        """Stop the server; Serve calls this when no request is in progress."""
        if hasattr(self, "_server"):
            await self._server.stop()


def application(given: dict[str, str]) -> serve.Application:
    """Build the application of ``serve run`` and of a Serve file; ``given`` are settings by name.

    They go to every replica, and settings that can't be shared are refused here. Secrets are
    better in the environment, ``PETERREC_*``, as Ray shows the arguments.
    """
    return Replica.bind(given)  # type: ignore[attr-defined]  # the decorator is untyped
