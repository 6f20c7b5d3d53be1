"""Which items of a ranking task are to be had: a list that is replaced without a new bundle."""

import asyncio
from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET, UnsetType
from starlette.types import Scope

from peterrec.model.kinds import KINDS
from peterrec.patches.identity import TenantId
from peterrec.patches.registry.availability import Availability, Mode
from peterrec.service.errors import MalformedRequest, TaskHasNoItems, cut
from peterrec.service.http.context import (
    AdminContext,
    Caller,
    Context,
    IfMatch,
    admin_task,
    expected_revision,
    set_etag,
)
from peterrec.service.http.views.availability import (
    AvailabilityChangedView,
    AvailabilityRequest,
    AvailabilityView,
)
from peterrec.service.predict.item_ids import SHOWN_ID, SHOWN_UNKNOWN, ItemId
from peterrec.service.predict.predictor import Predictor

router = APIRouter(prefix="/tasks/{task}/availability", tags=["availability"])

MAX_BODY_BYTES = 4 << 20
"""Largest body with a list: that of the largest list, if many of its characters are escaped."""

SHOWN_PROBLEM = 200
"""Characters of a decoder's message that an answer repeats: it may quote the caller's own text."""


def is_put(scope: Scope) -> bool:
    """Return whether a request puts a list, whose body may be larger than others."""
    parts = scope["path"].split("/")
    is_path = len(parts) == 4 and parts[1] == "tasks" and parts[3] == "availability"
    return is_path and scope["method"] == "PUT"


@router.get("", response_model=AvailabilityView)
async def get_availability(caller: Caller, context: Context, task: str) -> Response:
    """Return the list of the task's items that are to be had now, or not."""
    name, registry = admin_task(caller, task), context.registry
    # the revision first: a change between the two makes a later If-Match fail
    revision = (await registry.get_task(caller.tenant, name)).record.revision
    found = await registry.get_availability(caller.tenant, name)
    body = await asyncio.to_thread(_shown, name, revision, found)
    response = Response(body, media_type="application/json")
    set_etag(response, revision)
    return response


@router.put(
    "",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/AvailabilityRequest"},
                    "examples": {
                        "sold out": {"value": {"unavailable": ["1193", 661]}},
                        "in stock": {"value": {"available": ["914", "260"]}},
                    },
                }
            },
        }
    },
)
async def put_availability(
    caller: Caller,
    context: Context,
    task: str,
    request: Request,
    response: Response,
    if_match: IfMatch = None,
) -> AvailabilityChangedView:
    """Replace the list of the task's items that are to be had now, or not.

    It holds for every version of the task, on every replica within two seconds. An int means the
    item whose id is its decimal string.
    """
    name = admin_task(caller, task)
    expected = expected_revision(if_match)
    predictor: Predictor = request.app.predictions.predictor
    _require_ranking(context, caller.tenant, name)
    listed = await asyncio.to_thread(_read, await request.body())
    changed = await context.registry.put_availability(
        caller.tenant, name, listed, caller.key_id, expected
    )
    await context.wait_until_served(changed.revision)
    unknown = await predictor.not_in_catalog(caller.tenant, name, listed.items)
    set_etag(response, changed.revision)
    return AvailabilityChangedView(
        task=name,
        registry_revision=changed.revision,
        mode=listed.mode,
        count=len(listed.items),
        unknown=None if unknown is None else len(unknown),
        unknown_items=[cut(item, SHOWN_ID) for item in (unknown or ())[:SHOWN_UNKNOWN]],
    )


@router.delete("")
async def delete_availability(
    caller: Caller, context: Context, task: str, response: Response, if_match: IfMatch = None
) -> AvailabilityChangedView:
    """Remove the list: all items are to be had. Nothing changes if there is none."""
    name, expected = admin_task(caller, task), expected_revision(if_match)
    changed = await context.registry.clear_availability(
        caller.tenant, name, caller.key_id, expected
    )
    await context.wait_until_served(changed.revision)
    set_etag(response, changed.revision)
    return AvailabilityChangedView(
        task=name,
        registry_revision=changed.revision,
        mode=None,
        count=0,
        unknown=None,
        unknown_items=[],
    )


def _require_ranking(context: AdminContext, tenant: TenantId, task: str) -> None:
    """Refuse a list for a task that is known to answer with something else than items."""
    entry = context.table.entry(tenant, task)
    for digest in () if entry is None else entry.digests:
        bundle = context.table.resident(digest)
        if bundle is not None and not KINDS[bundle.kind].has_catalog:
            raise TaskHasNoItems(task, bundle.kind)


def _read(body: bytes) -> Availability:
    try:
        found = _decode(body)
        pairs: Sequence[tuple[Mode, list[ItemId] | UnsetType]] = (
            ("unavailable", found.unavailable),
            ("available", found.available),
        )
        given = [(mode, items) for mode, items in pairs if items is not UNSET]
        if len(given) == 1:
            ((mode, items),) = given
            return Availability.of(mode, [_id(item) for item in items])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        problem = cut(str(error), SHOWN_PROBLEM)
        raise MalformedRequest(f"the list can't be read: {problem}.", hint=_HINT) from error
    raise MalformedRequest("the body needs either unavailable or available.", hint=_HINT)


def _id(item: ItemId) -> str:
    if isinstance(item, int) and abs(item) >= 10**MAX_NUMBER_DIGITS:
        raise MalformedRequest(
            f"an item is a number of more than {MAX_NUMBER_DIGITS} digits.",
            hint="Send ids as texts.",
        )
    return str(item)


MAX_NUMBER_DIGITS = 64
"""Digits of the longest number that is taken for an item's id."""

_HINT = 'Send {"unavailable": ["1193", "661"]}, or {"available": […]} with all that are to be had.'
_decode = msgspec.json.Decoder(AvailabilityRequest).decode


def _shown(task: str, revision: int, found: Availability | None) -> bytes:
    """Encode a list; it has up to a quarter of a million items."""
    return msgspec.json.encode(
        {
            "task": task,
            "revision": revision,
            "mode": None if found is None else found.mode,
            "count": 0 if found is None else len(found.items),
            "items": msgspec.Raw(b"[]" if found is None else found.text.encode()),
        }
    )
