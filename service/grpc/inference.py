"""The calls of the Open Inference Protocol over gRPC, by their names."""

from collections.abc import Mapping
from functools import partial

import msgspec

from peterrec.service.errors import MalformedRequest, UnloadRefused
from peterrec.service.grpc.calls import GrpcCall, Handler
from peterrec.service.grpc.messages import Message, inference_class
from peterrec.service.grpc.tensors import make_response, read_request
from peterrec.service.http.context import AdminContext
from peterrec.service.http.find_model import FoundModel, find_model
from peterrec.service.http.routes.health import readiness_of
from peterrec.service.open_inference.infer import Asked, Engine, Lasting, infer
from peterrec.service.open_inference.metadata import (
    index,
    model_config,
    model_metadata,
    server_metadata,
)
from peterrec.service.predict.schemas import MAX_NAME_CHARACTERS
from peterrec.service.protocol.sender import Sender


def inference_handlers(admin: AdminContext) -> Mapping[str, Handler]:
    """Return what answers each call."""

    async def live(call: GrpcCall) -> Message:
        await call.read()
        return inference_class("ServerLiveResponse")(live=True)

    async def ready(call: GrpcCall) -> Message:
        await call.read()
        return inference_class("ServerReadyResponse")(ready=readiness_of(admin).status == "ready")

    async def list_models(call: GrpcCall) -> Message:
        caller = await call.authenticate()
        asked = await call.read()
        found = await index(
            admin.table,
            caller.tenant,
            lambda task: caller.may("predict", task),
            ready_only=asked.ready,
        )
        listed = inference_class("RepositoryIndexResponse")()
        for each in found:
            listed.models.add(
                name=each.name, version=each.version, state=each.state, reason=each.reason
            )
        return listed

    return {
        "ServerLive": live,
        "ServerReady": ready,
        "ServerMetadata": _server_metadata,
        "ModelReady": _model_ready,
        "ModelMetadata": _model_metadata,
        "ModelConfig": _model_config,
        "ModelInfer": _infer,
        "RepositoryIndex": list_models,
        "RepositoryModelLoad": _load,
        "RepositoryModelUnload": _unload,
    }


async def _server_metadata(call: GrpcCall) -> Message:
    await call.authenticate()
    await call.read()
    return inference_class("ServerMetadataResponse")(**msgspec.structs.asdict(server_metadata()))


async def _find(call: GrpcCall) -> FoundModel:
    caller = await call.authenticate()
    asked = await call.read()
    return await find_model(call.predictions, caller, asked.name, asked.version)


async def _model_ready(call: GrpcCall) -> Message:
    await _find(call)
    return inference_class("ModelReadyResponse")(ready=True)


async def _model_metadata(call: GrpcCall) -> Message:
    found = model_metadata(*await _find(call))
    return inference_class("ModelMetadataResponse")(**msgspec.to_builtins(found))


async def _model_config(call: GrpcCall) -> Message:
    found = model_config(*await _find(call))
    return inference_class("ModelConfigResponse")(config=msgspec.to_builtins(found))


async def _infer(call: GrpcCall) -> Message:
    caller = await call.identify()
    call.predictions.quotas.draw(call)
    limit_s = call.limit_s()
    call.task = ""
    predictions = call.predictions
    sender = Sender(caller.tenant, call.head.place_of_priority())
    predictions.admission.check(sender, 0, call.started + limit_s)
    request = await call.read(limit_s)
    task: str = request.model_name
    caller.require("predict", task)  # before anything that depends on whether it exists
    if len(request.model_version) > MAX_NAME_CHARACTERS:
        raise MalformedRequest(
            f"the version has more than {MAX_NAME_CHARACTERS} characters.", hint="Send its number."
        )
    predictions.table.existing(caller.tenant, task)
    call.task = task
    deadline = call.started + limit_s
    version = request.model_version or None
    asked = Asked(caller.tenant, task, version, sender.priority, call.started, deadline)
    admit_rows = partial(predictions.quotas.admit_rows, call)
    engine = Engine(
        predictions.predictor, predictions.registered, predictions.admission, admit_rows
    )
    work = predictions.shares.call(sender, deadline)
    try:
        if not work.may_work:
            await work.turn()
        inferred = await infer(engine, asked, read_request(request), _unchanged)
        return make_response(task, request.id, inferred)
    finally:
        work.end()
        call.rows = asked.rows


_unchanged: Lasting = lambda work: work  # noqa: E731  # gRPC itself cancels the call of a client that leaves


async def _load(call: GrpcCall) -> Message:
    caller = await call.authenticate()
    asked = await call.read()
    await find_model(call.predictions, caller, asked.model_name, "")
    return inference_class("RepositoryModelLoadResponse")()


async def _unload(call: GrpcCall) -> Message:
    caller = await call.authenticate()
    asked = await call.read()
    caller.require("predict", asked.model_name)
    raise UnloadRefused
