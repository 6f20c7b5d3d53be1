"""A task's aliases, and the rollback of a task to an earlier state."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field, model_validator

from peterrec.patches.errors import AliasNotFound
from peterrec.patches.identity import NAME_PATTERN, TaskId, TaskRef, format_digest
from peterrec.patches.registry.records import AliasMoved
from peterrec.patches.registry.registry import DEFAULT_ALIAS
from peterrec.service.http.context import (
    AllowNewOutputs,
    Caller,
    ClosedModel,
    Context,
    IfMatch,
    admin_task,
    expected_revision,
    set_etag,
)
from peterrec.service.http.find_version import find_version
from peterrec.service.http.views.tasks import (
    AliasMovedView,
    AliasView,
    Changed,
    RolledBackView,
    TrafficView,
    numbers_of,
)

router = APIRouter(prefix="/tasks", tags=["aliases"])


class AliasRequest(ClosedModel):
    """The version that the alias should name, by number or by digest."""

    version: int | None = Field(None, ge=1)
    digest: str | None = None

    @model_validator(mode="after")
    def _names_one(self) -> "AliasRequest":
        if (self.version is None) == (self.digest is None):
            raise ValueError("give either version or digest")
        return self


@router.get("/{task}/aliases")
async def list_aliases(
    caller: Caller, context: Context, task: str, response: Response
) -> dict[str, AliasView]:
    """List the aliases of a task, each with the version that it names."""
    record = (await context.registry.get_task(caller.tenant, admin_task(caller, task))).record
    set_etag(response, record.revision)
    return {alias: AliasView.of(target) for alias, target in record.aliases.items()}


@router.get("/{task}/aliases/{alias}")
async def get_alias(
    caller: Caller, context: Context, task: str, alias: str, response: Response
) -> AliasView:
    """Return the version that an alias names."""
    record = (await context.registry.get_task(caller.tenant, admin_task(caller, task))).record
    set_etag(response, record.revision)
    if alias not in record.aliases:
        raise AliasNotFound(record.task, alias[:128])
    return AliasView.of(record.aliases[alias])


@router.put("/{task}/aliases/{alias}")
async def put_alias(
    caller: Caller,
    context: Context,
    task: str,
    alias: str,
    body: AliasRequest,
    response: Response,
    allow_new_outputs: AllowNewOutputs = False,
    if_match: IfMatch = None,
) -> AliasMovedView:
    """Point an alias at a version. The version that `prod` names answers the task's requests.

    Refused (409 outputs_differ) if the alias names a version whose answers say other things, unless
    allow_new_outputs is true.
    """
    name, registry = admin_task(caller, task), context.registry
    found = await find_version(registry, caller.tenant, name, str(body.version or body.digest))
    moved = await registry.set_alias(
        caller.tenant,
        name,
        alias,
        found.digest,
        caller.key_id,
        expected_revision(if_match),
        allow_new_outputs=allow_new_outputs,
    )
    is_served = await context.wait_until_served_as(
        TaskRef(caller.tenant, name),
        moved.revision,
        lambda served: served.aliases.get(alias) == moved.current.version,
    )
    set_etag(response, moved.revision)
    return AliasMovedView(**_moved(name, alias, moved), is_served=is_served)


@router.delete("/{task}/aliases/{alias}")
async def delete_alias(
    caller: Caller,
    context: Context,
    task: str,
    alias: str,
    response: Response,
    if_match: IfMatch = None,
) -> Changed:
    """Delete an alias. Without `prod`, a task only answers requests that ask for a version."""
    name = admin_task(caller, task)
    revision = await context.registry.delete_alias(
        caller.tenant, name, alias, caller.key_id, expected_revision(if_match)
    )
    await context.wait_until_served(revision)
    set_etag(response, revision)
    return Changed(task=name, registry_revision=revision)


@router.post("/{task}:rollback")
async def rollback(
    caller: Caller,
    context: Context,
    task: str,
    response: Response,
    alias: Annotated[
        str,
        Query(
            description="The alias that must name a version afterwards.",
            json_schema_extra={"pattern": NAME_PATTERN},
        ),
    ] = DEFAULT_ALIAS,
    if_match: IfMatch = None,
) -> RolledBackView:
    """Restore the task's previous state: all aliases and the traffic.

    A further call goes back one more step. Other outputs do not prevent it, since callers got them
    before: `new_outputs` lists how they differ.
    """
    name, registry = admin_task(caller, task), context.registry
    expected = expected_revision(if_match)
    detail = await registry.get_task(caller.tenant, name)
    back = await registry.rollback(caller.tenant, name, caller.key_id, alias, expected)
    numbers = {each: target.version for each, target in back.aliases.items()}
    is_served = await context.wait_until_served_as(
        TaskRef(caller.tenant, name),
        back.revision,
        lambda served: served.aliases == numbers and (not back.traffic or bool(served.traffic)),
    )
    set_etag(response, back.revision)
    return RolledBackView(
        **_moved(name, alias, back),
        aliases={each: AliasView.of(target) for each, target in back.aliases.items()},
        traffic=TrafficView.of(back.traffic, numbers_of(detail)),
        new_outputs=list(back.new_outputs),
        is_served=is_served,
    )


def _moved(task: TaskId, alias: str, moved: AliasMoved) -> dict[str, Any]:
    # Any: checked by the model that the fields fill
    return {
        "task": task,
        "registry_revision": moved.revision,
        "alias": alias,
        "version": moved.current.version,
        "digest": format_digest(moved.current.digest),
        "previous": None if moved.previous is None else format_digest(moved.previous),
    }
