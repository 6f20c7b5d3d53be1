"""Tasks and their aliases. A change is answered when this whole replica serves it."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field, model_validator

from patches.errors import VersionNotFound
from patches.identity import TaskId, TenantId, format_digest, parse_digest
from patches.records import AliasMoved, TaskOptions, VersionRecord
from patches.registry import DEFAULT_ALIAS, Registry
from service.auth import Principal
from service.routes.context import (
    AdminContext,
    ClosedModel,
    IfMatch,
    IfNoneMatch,
    admin_task,
    expected_revision,
    find_caller,
    set_etag,
)
from service.routes.task_views import (
    AliasMovedView,
    Changed,
    TaskDetailView,
    TaskView,
    task_detail,
)


class TaskRequest(ClosedModel):
    """What an owner says about a task."""

    description: str = Field("", max_length=4096)
    is_sensitive: bool = False


class AliasRequest(ClosedModel):
    """The version to name: by its number or by its digest."""

    version: int | None = Field(None, ge=1)
    digest: str | None = None

    @model_validator(mode="after")
    def _names_one(self) -> "AliasRequest":
        if (self.version is None) == (self.digest is None):
            raise ValueError("give either version or digest")
        return self


def tasks_router(context: AdminContext) -> APIRouter:
    """``/tasks`` without the versions."""
    router = APIRouter(prefix="/tasks", tags=["tasks"])
    Caller = Annotated[Principal, Depends(find_caller(context.authenticator))]
    registry = context.registry

    @router.get("")
    async def list_tasks(caller: Caller) -> list[TaskView]:
        """The tenant's tasks that this key may use or administer, by name."""
        records = await registry.list_tasks(caller.tenant)
        return [
            TaskView.of(record)
            for record in records
            if caller.may("admin", record.task) or caller.may("predict", record.task)
        ]

    @router.get("/{task}")
    async def get_task(caller: Caller, task: str, response: Response) -> TaskDetailView:
        """A task with its aliases and versions."""
        detail = await registry.get_task(caller.tenant, admin_task(caller, task))
        set_etag(response, detail.record.revision)
        return task_detail(detail.record, detail.versions)

    @router.put("/{task}", responses={201: {"model": Changed, "description": "Created."}})
    async def put_task(
        caller: Caller,
        task: str,
        body: TaskRequest,
        response: Response,
        if_match: IfMatch = None,
        if_none_match: IfNoneMatch = None,
    ) -> Changed:
        """Create a task without versions, or say something else about an existing one."""
        name = admin_task(caller, task)
        put = await registry.put_task(
            caller.tenant,
            name,
            TaskOptions(body.description, body.is_sensitive),
            caller.key_id,
            expected_revision(if_match, if_none_match),
        )
        await context.served(put.revision)
        response.status_code = 201 if put.was_created else 200
        set_etag(response, put.revision)
        return Changed(task=name, registry_revision=put.revision)

    @router.delete("/{task}")
    async def delete_task(caller: Caller, task: str, if_match: IfMatch = None) -> Changed:
        """Forget a task with its versions; requests for it get 404 from now on."""
        name = admin_task(caller, task)
        revision = await registry.delete_task(
            caller.tenant, name, caller.key_id, expected_revision(if_match)
        )
        await context.served(revision)
        return Changed(task=name, registry_revision=revision)

    @router.put("/{task}/aliases/{alias}")
    async def put_alias(
        caller: Caller,
        task: str,
        alias: str,
        body: AliasRequest,
        response: Response,
        if_match: IfMatch = None,
    ) -> AliasMovedView:
        """Let an alias name another version; ``prod`` is the one that answers."""
        name = admin_task(caller, task)
        found = await find_version(registry, caller.tenant, name, str(body.version or body.digest))
        moved = await registry.set_alias(
            caller.tenant, name, alias, found.digest, caller.key_id, expected_revision(if_match)
        )
        await context.served(moved.revision)
        set_etag(response, moved.revision)
        return _moved(name, alias, moved)

    @router.post("/{task}:rollback")
    async def rollback(
        caller: Caller,
        task: str,
        response: Response,
        alias: Annotated[str, Query(description="The alias to move.")] = DEFAULT_ALIAS,
        if_match: IfMatch = None,
    ) -> AliasMovedView:
        """Let an alias name what it named before; again: one step further back."""
        name = admin_task(caller, task)
        moved = await registry.rollback(
            caller.tenant, name, caller.key_id, alias, expected_revision(if_match)
        )
        await context.served(moved.revision)
        set_etag(response, moved.revision)
        return _moved(name, alias, moved)

    return router


async def find_version(
    registry: Registry, tenant: TenantId, task: TaskId, text: str
) -> VersionRecord:
    """The version with this number or digest; VersionNotFound if the task lacks it."""
    detail = await registry.get_task(tenant, task)
    wanted = None if text.isdecimal() and len(text) < 20 else parse_digest(text)
    for record in detail.versions:
        if record.digest == wanted or (wanted is None and record.version == int(text)):
            return record
    raise VersionNotFound(task, text)


def _moved(task: TaskId, alias: str, moved: AliasMoved) -> AliasMovedView:
    return AliasMovedView(
        task=task,
        registry_revision=moved.revision,
        alias=alias,
        version=moved.current.version,
        digest=format_digest(moved.current.digest),
        previous=None if moved.previous is None else format_digest(moved.previous),
    )
