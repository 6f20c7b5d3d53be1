"""Health checking and reflection: what load balancers and tools ask any gRPC server."""

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc import StatusCode
from grpc.aio import EOF, ServicerContext

from peterrec.service.errors import ServiceUnknown, cut
from peterrec.service.grpc.calls import GrpcCall, Handler
from peterrec.service.grpc.messages import (
    HEALTH,
    INFERENCE,
    REFLECTION,
    Message,
    message_class,
    pool,
)
from peterrec.service.http.context import AdminContext
from peterrec.service.http.routes.health import readiness_of

SERVICES = (INFERENCE, HEALTH, REFLECTION)

MAX_QUESTIONS = 100
"""Most questions of one reflection call: there are three files."""

SHOWN = 100
"""Characters of a caller's text that an answer repeats."""


def health_handlers(admin: AdminContext) -> Mapping[str, Handler]:
    """Return what answers health checks."""

    async def check(call: GrpcCall) -> Message:
        asked = await call.read()
        if asked.service not in ("", *SERVICES):
            raise ServiceUnknown(cut(asked.service, SHOWN))
        is_ready = readiness_of(admin).status == "ready"
        status = "SERVING" if is_ready else "NOT_SERVING"
        return message_class("grpc.health.v1.HealthCheckResponse")(status=status)

    return {"Check": check}


async def reflect(_requests: object, context: "ServicerContext[Any, Any]") -> None:
    """Answer a stream of questions about services and messages."""
    # Any: messages are bytes here
    request_class = message_class("grpc.reflection.v1.ServerReflectionRequest")
    for _ in range(MAX_QUESTIONS):
        data = await context.read()
        if data is EOF:
            return
        answer = _answer(request_class.FromString(data))
        await context.write(answer.SerializeToString())
    await context.abort(StatusCode.RESOURCE_EXHAUSTED, "open another stream for more questions.")


def _answer(request: Message) -> Message:
    response = message_class("grpc.reflection.v1.ServerReflectionResponse")(
        valid_host=request.host, original_request=request
    )
    asked = request.WhichOneof("message_request")
    if asked == "list_services":
        for name in SERVICES:
            response.list_services_response.service.add(name=name)
        return response
    try:
        if asked == "file_by_filename":
            file = pool().FindFileByName(request.file_by_filename)
        else:
            file = pool().FindFileContainingSymbol(request.file_containing_symbol)
    except KeyError:
        response.error_response.error_code = StatusCode.NOT_FOUND.value[0]
        response.error_response.error_message = "there is no such file or symbol."
        return response
    response.file_descriptor_response.file_descriptor_proto.extend(_files(file))
    return response


def _files(file: FileDescriptor) -> Iterator[bytes]:
    found = FileDescriptorProto()
    file.CopyToProto(found)
    yield found.SerializeToString()
