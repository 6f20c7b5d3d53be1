"""A task's versions: push a bundle, list, read, delete."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from peterrec.patches.identity import Digest, format_digest
from peterrec.patches.registry.outputs import FileReader, read_outputs
from peterrec.patches.registry.records import VersionSummary
from peterrec.patches.registry.registry import DEFAULT_ALIAS
from peterrec.service.errors import BodyTooLarge, ErrorBody, MalformedRequest, push_error
from peterrec.service.http.asgi import ClientLeft
from peterrec.service.http.context import (
    VALIDATE_TIMEOUT_S,
    AdminContext,
    AllowNewOutputs,
    Caller,
    Context,
    IfMatch,
    IfNoneMatch,
    admin_task,
    expected_revision,
    set_etag,
)
from peterrec.service.http.find_version import find_version
from peterrec.service.http.upload import uploaded_file
from peterrec.service.http.views.tasks import Changed, VersionView
from peterrec.service.protocol.messages import Validated

router = APIRouter(prefix="/tasks/{task}/versions", tags=["versions"])

RAW_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one .bundle file.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
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
    metrics: dict[str, float]
    signed_by: list[str]


class Pushed(BaseModel):
    """A bundle that was validated on the serving device and registered.

    With validate_only it was only validated: version and registry_revision are null.
    """

    task: str
    digest: str
    alias: str | None
    version: int | None
    registry_revision: int | None
    summary: BundleSummary


@router.post(
    "",
    openapi_extra=RAW_BODY,
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
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Pushed:
    """Verify a bundle, run its probes on the device, register it and serve it.

    A refused bundle changes nothing; the answer lists every reason. It is refused too (409
    outputs_differ) if the alias names a version whose answers say other things, unless
    allow_new_outputs is true.
    """
    name, registry = admin_task(caller, task), context.registry
    expected = expected_revision(if_match, if_none_match)
    async with uploaded_file(
        _chunks(request, context.bundle_size_limit_bytes),
        context.upload_dir,
        context.bundle_size_limit_bytes,
    ) as path:
        await context.give_way()
        validated = await _validate(context, path, store=not validate_only)
        if validate_only and alias and not allow_new_outputs:
            outputs = await read_outputs(await FileReader.open(path))
            await registry.compare_outputs(caller.tenant, name, alias, outputs)
    await context.give_way()
    if validate_only:
        return _pushed(name, alias, validated)
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


async def _chunks(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. A declared length past the limit is refused before that."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise MalformedRequest(
            "the body is a multipart form.",
            hint="Send the bundle's bytes themselves: curl --data-binary @FILE.",
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise ClientLeft from error


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
    return Pushed(
        task=task,
        digest=format_digest(Digest(validated.digest)),
        alias=alias or None,
        version=None,
        registry_revision=None,
        summary=BundleSummary(**summary),
    )
