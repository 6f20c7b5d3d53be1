"""The gRPC server of one worker: it lives in the worker's event loop.

All workers listen on one port, between which the kernel distributes connections (SO_REUSEPORT).
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from grpc.aio import ServicerContext

from peterrec.service.grpc.calls import GrpcCall, Handler, run
from peterrec.service.grpc.discovery import health_handlers, reflect
from peterrec.service.grpc.inference import inference_handlers
from peterrec.service.grpc.messages import (
    HEALTH,
    INFERENCE,
    REFLECTION,
    Message,
    message_class,
    pool,
)
from peterrec.service.http.context import AdminContext, PredictContext
from peterrec.service.predict.schemas import MAX_BODY_BYTES

MAX_CALLS = 1024
"""Calls that a worker has in progress; a further one is refused at once."""

CONNECTION_STREAMS = 128
"""Calls of one connection in progress; further ones wait in the client."""

METADATA_BYTES = 32 << 10
"""Bytes of the metadata of a call: as many as a head may have over HTTP."""

HANDSHAKE_MS = 10_000
IDLE_MS = 300_000
"""Milliseconds after which a connection without calls is closed; clients open another one."""

KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
PING_INTERVAL_MS = 10_000
"""Clients that ping more often than this are disconnected."""


class GrpcServer:
    """Answers the Open Inference Protocol on a port until it is stopped."""

    def __init__(
        self,
        admin: AdminContext,
        predictions: PredictContext,
        address: str,
        connection_limit: int,
    ) -> None:
        self._server = grpc.aio.server(
            options=_options(connection_limit), maximum_concurrent_rpcs=MAX_CALLS
        )
        services = {INFERENCE: inference_handlers(admin), HEALTH: health_handlers(admin)}
        for service, handlers in services.items():
            self._server.add_generic_rpc_handlers((_serve(service, handlers, predictions),))
        reflection = {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(reflect)}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(REFLECTION, reflection),)
        )
        self._server.add_insecure_port(address)

    async def start(self) -> None:
        """Accept connections."""
        await self._server.start()

    async def stop(self, timeout_s: float) -> None:
        """Refuse new calls, and wait for those in progress at most ``timeout_s`` seconds."""
        await self._server.stop(timeout_s)


def _options(connection_limit: int) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", MAX_BODY_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", CONNECTION_STREAMS),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.max_allowed_incoming_connections", connection_limit),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", IDLE_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_INTERVAL_MS),
    ]


def _serve(
    service: str, handlers: Mapping[str, Handler], predictions: PredictContext
) -> grpc.GenericRpcHandler:
    """Return what runs the calls of a service.

    All are registered as streams, which look the same on the wire: so the key of a call is looked
    at before its message is read, and its message has a time limit.
    """
    methods = pool().FindServiceByName(service).methods_by_name
    return grpc.method_handlers_generic_handler(
        service,
        {
            name: grpc.stream_stream_rpc_method_handler(
                _runner(message_class(methods[name].input_type.full_name), handler, predictions)
            )
            for name, handler in handlers.items()
        },
    )


def _runner(
    request: Message, handler: Handler, predictions: PredictContext
) -> Callable[[object, "ServicerContext[Any, Any]"], Awaitable[None]]:
    # Any: messages are bytes here
    async def answer(_requests: object, context: "ServicerContext[Any, Any]") -> None:
        await run(GrpcCall(predictions, request, context), handler)

    return answer
