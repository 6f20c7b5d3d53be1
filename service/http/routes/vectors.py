"""``POST /users/vectors``: user vectors, by a raw route like the predictions."""

from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Depends
from msgspec import UNSET

from peterrec.model.errors import PeterRecError
from peterrec.model.files.backbone_info import BackboneInfo
from peterrec.service.errors import BackboneNotServed, NothingAnswered, error_body
from peterrec.service.http.asgi import Headers, encode_each, encode_json, send_json
from peterrec.service.http.auth import Principal
from peterrec.service.http.context import PredictContext, find_caller
from peterrec.service.http.openapi import (
    REFUSALS,
    VECTORS_REQUESTS,
    VECTORS_RESPONSES,
    raw_operation,
)
from peterrec.service.http.raw_route import Call, RawRoute
from peterrec.service.http.routes.predict import (
    authenticate,
    begin_work,
    deadline_of,
    guard,
    read_form,
)
from peterrec.service.predict.admission import count_rows
from peterrec.service.predict.body_hints import VECTORS
from peterrec.service.predict.parse import parse_vectors
from peterrec.service.predict.schemas import FailedRow
from peterrec.service.predict.user_vectors import (
    UserVector,
    VectorInstance,
    VectorsAsked,
    VectorsFound,
    VectorsRequest,
    VectorsResponse,
    vector_of,
)
from peterrec.service.protocol.sender import Sender
from peterrec.service.telemetry.timeline import mark_read

router = APIRouter(
    tags=["predict"],
    route_class=RawRoute,
    dependencies=[Depends(find_caller)],  # for the OpenAPI document; see authenticate
    responses=REFUSALS,
)


@router.post(
    "/users/vectors",
    operation_id="user_vectors",
    response_description="Answered.",
    openapi_extra=raw_operation(
        VectorsRequest, VECTORS_REQUESTS, VectorsResponse, VECTORS_RESPONSES
    ),
)
async def user_vectors(call: Call) -> None:
    """Return the vectors that the backbone, or a task's patch in it, computes of histories.

    Needs the scope vectors: for all tasks, or for the task that is named.
    """
    context: PredictContext = call.scope["app"].predictions
    await guard(context, call, _vectors(context, call))


async def _vectors(context: PredictContext, call: Call) -> None:
    principal = await authenticate(context, call)
    if not any(scope.action == "vectors" for scope in principal.scopes):
        principal.require_everywhere("vectors")  # before a body is read for a caller without it
    deadline = deadline_of(context, call)
    sender = Sender(principal.tenant, call.head.place_of_priority())
    context.admission.check(sender, call.head.size_bytes, deadline)
    body = await read_form(call, VECTORS, deadline)
    mark_read()
    with context.admission.admit(sender, count_rows(body), deadline, len(body)) as stay:
        await begin_work(context, call, sender, deadline)
        instances, asked = parse_vectors(body)
        _authorise(principal, asked)
        call.rows = len(instances)
        context.quotas.admit_rows(call, call.rows)
        if asked.task is not None:
            context.table.existing(principal.tenant, asked.task)
            call.tasks = (asked.task,)
        backbones = call.scope["app"].state.admin.backbones
        place = _place_of(asked.backbone, backbones)
        try:
            found = await call.connection.while_it_lasts(
                context.predictor.vectors(sender, asked, instances, deadline, place)
            )
        except PeterRecError as error:
            raise await context.registered.judged(principal.tenant, error) from error
        stay.answered = sum(not result.error for result in found.results)
    backbone: BackboneInfo = backbones[found.backbone]
    if asked.backbone not in (None, backbone.fingerprint):
        raise BackboneNotServed(asked.backbone, f"task {asked.task!r} has {backbone.fingerprint}")
    vectors = list(_encoded(found, instances, asked))
    errors = {str(at): each for at, each in enumerate(vectors) if isinstance(each, PeterRecError)}
    if len(errors) == len(vectors):
        raise errors["0"] if len(errors) == 1 else NothingAnswered(errors)
    slots = [_slot(*pair) for pair in zip(vectors, instances, strict=True)]
    served = found.served
    response = VectorsResponse(
        backbone=backbone.fingerprint,
        dimensions=backbone.spec.channels,
        encoding=asked.encoding,
        registry_revision=found.registry_revision,
        request_id=call.head.request_id,
        vectors=await encode_each(slots),
        task=asked.task or UNSET,
        version=UNSET if served is None else served.version,
        digest=UNSET if served is None else served.digest,
        alias=UNSET if served is None else served.alias,
    )
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"x-request-id", call.head.request_id.encode()),
    ]
    if served is not None:
        headers.append((b"x-bundle-digest", served.digest.encode()))
    await send_json(call.send, 200, encode_json(response), headers, call.head.accept_encoding)


def _authorise(principal: Principal, asked: VectorsAsked) -> None:
    """Look at the scopes before anything that depends on whether a task exists."""
    if asked.task is None:
        principal.require_everywhere("vectors")
    else:
        principal.require("vectors", asked.task)


def _place_of(fingerprint: str | None, backbones: Sequence[BackboneInfo]) -> int:
    """Return the place of a backbone among those of the server; of the first by default."""
    if fingerprint is None:
        return 0
    for place, info in enumerate(backbones):
        if info.fingerprint == fingerprint:
            return place
    served = ", ".join(info.fingerprint for info in backbones)
    raise BackboneNotServed(fingerprint, f"this server has {served}")


def _encoded(
    found: VectorsFound, instances: list[VectorInstance | PeterRecError], asked: VectorsAsked
) -> Iterator[UserVector | PeterRecError]:
    results = iter(found.results)
    for history, instance in zip(found.histories, instances, strict=True):
        if isinstance(history, PeterRecError):
            yield history
        else:
            yield vector_of(history, next(results), asked.encoding, _user_id(instance))


def _slot(
    vector: UserVector | PeterRecError, instance: VectorInstance | PeterRecError
) -> UserVector | FailedRow:
    if not isinstance(vector, PeterRecError):
        return vector
    user_id = _user_id(instance)
    return FailedRow(error_body(vector), UNSET if user_id is None else user_id)


def _user_id(instance: VectorInstance | PeterRecError) -> str | int | None:
    return None if isinstance(instance, PeterRecError) else instance.user_id
