"""A task's versions: push a bundle, list, read, delete."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, StringConstraints, ValidationError
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import Scope

from peterrec.patches.identity import Digest, TenantId, format_digest, parse_digest
from peterrec.patches.registry.outputs import FileReader, read_outputs
from peterrec.patches.registry.records import VersionSummary
from peterrec.patches.registry.registry import DEFAULT_ALIAS
from peterrec.service.errors import (
    BodyTooLarge,
    EncodingUnsupported,
    ErrorBody,
    MalformedRequest,
    cut,
    push_error,
)
from peterrec.service.http.asgi import ClientLeft
from peterrec.service.http.auth import Principal
from peterrec.service.http.context import (
    VALIDATE_TIMEOUT_S,
    AdminContext,
    AllowNewOutputs,
    Caller,
    ClosedModel,
    Context,
    IfMatch,
    IfNoneMatch,
    admin_task,
    expected_revision,
    set_etag,
)
from peterrec.service.http.encodings import ACCEPTED
from peterrec.service.http.fetching import Wanted, fetched_file
from peterrec.service.http.find_version import find_version
from peterrec.service.http.upload import uploaded_file
from peterrec.service.http.views.tasks import Changed, VersionView
from peterrec.service.protocol.messages import Validated
from peterrec.service.sources.address import LONGEST_ADDRESS, parse_address

router = APIRouter(prefix="/tasks/{task}/versions", tags=["versions"])

_PUSHED = compile_path(router.prefix)[0]

MAX_SOURCE_BODY_BYTES = 16 << 10
"""Size of a body that names a bundle: an address has at most 4096 characters."""


BYTES = "application/octet-stream"

SHOWN_ADDRESS = 300
"""Characters of an address that the audit trail keeps."""


class BundleSource(ClosedModel):
    """A bundle that the server is to fetch itself."""

    source: Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_ADDRESS)] = Field(
        description="`https://HOST/PATH`, `s3://BUCKET/KEY`, `oci://HOST/REPOSITORY:TAG` or "
        "`runs:/RUN_ID/PATH`, under a prefix that PETERREC_BUNDLE_SOURCES allows."
    )
    digest: Annotated[str, StringConstraints(max_length=80)] | None = Field(
        None, description="Digest that the bundle must have: `sha256:…`."
    )


BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one .bundle file, or where the server finds it.",
        "content": {
            BYTES: {"schema": {"type": "string", "format": "binary", "minLength": 1}},
            "application/json": {"schema": BundleSource.model_json_schema()},
        },
    }
}


class BundleSummary(BaseModel):
    """The main properties of a bundle, from its manifest."""

    name: str
    kind: str
    outputs: int
    backbone: str
    size_bytes: int
    patch_bytes: int
    head_bytes: int
    patch_work: float
    row_work: float
    answer_bytes: int
    metrics: dict[str, float]
    signed_by: list[str]


class ProbesView(BaseModel):
    """How a bundle's probes went on this device: histories with the logits that they must give.

    ``largest_error`` is that of all their logits, relative to what each output can reach; a bundle
    with one above ``tolerance`` is refused.
    """

    count: int
    largest_error: float
    tolerance: float


class Pushed(BaseModel):
    """A bundle that was validated on the serving device and registered.

    With validate_only it was only validated: version and registry_revision are null. ``probes``
    are those of when it was loaded; null if it has left the device since.
    """

    task: str
    digest: str
    alias: str | None
    version: int | None
    registry_revision: int | None
    summary: BundleSummary
    probes: ProbesView | None


@router.post(
    "",
    openapi_extra=BODY,
    responses={
        200: {"model": Pushed, "description": "Was registered already, or validate_only."},
        201: {"model": Pushed, "description": "Registered."},
    },
)
async def push(
    caller: Caller,
    context: Context,
    task: str,
    request: Request,
    response: Response,
    alias: Annotated[
        str, Query(description="Alias to point at the bundle; empty for none.")
    ] = DEFAULT_ALIAS,
    validate_only: bool = False,
    allow_new_outputs: AllowNewOutputs = False,
    origin: Annotated[
        str | None,
        Query(
            max_length=LONGEST_ADDRESS,
            description="For the audit trail: the address from which the caller has the bytes.",
        ),
    ] = None,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Pushed:
    """Verify a bundle, run its probes on the device, register it and serve it.

    The body is the bundle, or JSON that says where the server fetches it. A refused bundle changes
    nothing; the answer lists every reason. It is refused too (409 outputs_differ) if the alias
    names a version whose answers say other things, unless allow_new_outputs is true.
    """
    name, registry = admin_task(caller, task), context.registry
    expected = expected_revision(if_match, if_none_match)
    async with _bundle(request, caller, context, origin) as (path, came_from):
        await context.give_way()
        is_stored = not validate_only and await _has_room(context, caller.tenant, path)
        validated = await _validate(context, path, store=is_stored)
        if validate_only and alias and not allow_new_outputs:
            outputs = await read_outputs(await FileReader.open(path))
            await registry.compare_outputs(caller.tenant, name, alias, outputs)
    await context.give_way()
    if validate_only:
        return _pushed(name, alias, validated)
    context.authenticator.require_valid(caller)  # validating took a while
    digest = Digest(validated.digest)
    summary = msgspec.json.decode(validated.summary, type=VersionSummary)
    added = await registry.add_version(
        caller.tenant,
        name,
        digest,
        summary,
        caller.key_id,
        alias or None,
        expected,
        allow_new_outputs=allow_new_outputs,
        origin=came_from,
    )
    await context.give_way()
    await context.wait_until_served(added.revision)
    await context.give_way()
    response.status_code = 201 if added.was_created else 200
    set_etag(response, added.revision)
    return _pushed(name, alias, validated).model_copy(
        update={"version": added.version, "registry_revision": added.revision}
    )


@router.get("")
async def list_versions(
    caller: Caller, context: Context, task: str, response: Response
) -> list[VersionView]:
    """List the task's versions, oldest first."""
    detail = await context.registry.get_task(caller.tenant, admin_task(caller, task))
    set_etag(response, detail.record.revision)
    return [VersionView.of(version) for version in detail.versions]


@router.get("/{version}")
async def get_version(caller: Caller, context: Context, task: str, version: str) -> VersionView:
    """Return one version, by its number or digest."""
    name = admin_task(caller, task)
    return VersionView.of(await find_version(context.registry, caller.tenant, name, version))


@router.get(
    "/{version}/bundle",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The bundle.",
            "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def get_bundle(
    caller: Caller, context: Context, task: str, version: str
) -> StreamingResponse:
    """Return the bytes of a registered bundle, as they were pushed."""
    name, registry = admin_task(caller, task), context.registry
    found = await find_version(registry, caller.tenant, name, version)
    stored = await registry.blobs.open(found.digest)
    headers = {
        "content-length": str(stored.size_bytes),
        "content-disposition": f'attachment; filename="{name}-{found.version}.bundle"',
    }
    return StreamingResponse(stored.pieces(), media_type=BYTES, headers=headers)


@router.post("/{version}:probe")
async def probe_version(caller: Caller, context: Context, task: str, version: str) -> Pushed:
    """Verify a registered bundle again, and run its probes on the device of this replica.

    Nothing changes. A bundle that this replica refuses is refused with the reasons of a push.
    """
    name, registry = admin_task(caller, task), context.registry
    found = await find_version(registry, caller.tenant, name, version)
    stored = await registry.blobs.open(found.digest)
    async with uploaded_file(stored.pieces(), context.upload_dir, stored.size_bytes) as path:
        await context.give_way()
        validated = await _validate(context, path, store=False)
    return _pushed(name, "", validated).model_copy(update={"version": found.version})


@router.delete("/{version}")
async def delete_version(
    caller: Caller,
    context: Context,
    task: str,
    version: str,
    response: Response,
    if_match: IfMatch = None,
) -> Changed:
    """Delete a version that neither an alias nor the traffic names."""
    name, registry = admin_task(caller, task), context.registry
    found = await find_version(registry, caller.tenant, name, version)
    revision = await registry.delete_version(
        caller.tenant, name, found.digest, caller.key_id, expected_revision(if_match)
    )
    await context.wait_until_served(revision)
    set_etag(response, revision)
    return Changed(task=name, registry_revision=revision)


def is_push(scope: Scope) -> bool:
    """Whether a request pushes a bundle: the only body that is not read before its route runs."""
    return scope["method"] == "POST" and _PUSHED.fullmatch(scope["path"]) is not None


class Received(NamedTuple):
    """The file of a pushed bundle, and what the audit trail notes of where it came from."""

    path: Path
    origin: str | None


@asynccontextmanager
async def _bundle(
    request: Request, caller: Principal, context: AdminContext, origin: str | None
) -> AsyncIterator[Received]:
    """Have the pushed bundle in a file: the body itself, or what its ``source`` names."""
    limit, folder = context.bundle_size_limit_bytes, context.upload_dir
    told = None if origin is None else f"from {_shown(origin)}, as the caller says"
    if request.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
        wanted = await _wanted(request, caller, limit)
        async with fetched_file(wanted, context.sources, folder) as path:
            context.authenticator.require_valid(caller)  # fetching took a while
            yield Received(path, f"fetched from {_shown(wanted.text)}")
    else:
        async with uploaded_file(_chunks(request, limit), folder, limit) as path:
            yield Received(path, told)


def _shown(address: str) -> str:
    """Return an address for the audit trail, which keeps it for the last 10,000 changes."""
    return cut(str(parse_address(address)), SHOWN_ADDRESS)


async def _wanted(request: Request, caller: Principal, limit_bytes: int) -> Wanted:
    body = b""
    async for chunk in _chunks(request, MAX_SOURCE_BODY_BYTES):
        body += chunk
        if len(body) > MAX_SOURCE_BODY_BYTES:
            raise BodyTooLarge(MAX_SOURCE_BODY_BYTES)
    try:
        asked = BundleSource.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    digest = None if asked.digest is None else parse_digest(asked.digest)
    source = parse_address(asked.source)
    return Wanted(asked.source, source, digest, caller.tenant, limit_bytes)


async def _chunks(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. A declared length past the limit is refused before that."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise MalformedRequest(
            "the body is a multipart form.",
            hint="Send the bundle's bytes themselves: curl --data-binary @FILE.",
        )
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise EncodingUnsupported(coding, ACCEPTED)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise ClientLeft from error


async def _has_room(context: AdminContext, tenant: TenantId, path: Path) -> bool:
    """Return whether an upload may be stored for its tenant.

    The registration decides, in one step. But a bundle that it will refuse, unless the very bundle
    is registered already, should not fill the registry's Redis until then.
    """
    size = (await asyncio.to_thread(path.stat)).st_size
    return await context.registry.tenants.has_room(tenant, size)


async def _validate(context: AdminContext, path: Path, *, store: bool) -> Validated:
    """Have the device process read the upload once: verify it, run its probes and store it.

    Raises the error of the push with all its reasons.
    """
    validated = await context.link.validate(str(path), VALIDATE_TIMEOUT_S, store=store)
    if validated.reasons:
        reasons = [ErrorBody(r.code, r.message, r.hint) for r in validated.reasons]
        raise push_error(validated.category, reasons)
    return validated


def _pushed(task: str, alias: str, validated: Validated) -> Pushed:
    summary: dict[str, Any] = msgspec.json.decode(validated.summary)  # Any: pydantic checks it
    probes = validated.probes
    return Pushed(
        task=task,
        digest=format_digest(Digest(validated.digest)),
        alias=alias or None,
        version=None,
        registry_revision=None,
        summary=BundleSummary(**summary),
        probes=None if probes is None else ProbesView(**msgspec.structs.asdict(probes)),
    )
