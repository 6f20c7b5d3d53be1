"""Tasks. A change is answered when this whole replica serves it."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import Field

from peterrec.patches.registry.records import TaskOptions
from peterrec.service.http.auth import Principal
from peterrec.service.http.routes.context import (
    AdminContext,
    ClosedModel,
    IfMatch,
    IfNoneMatch,
    admin_task,
    expected_revision,
    find_caller,
    set_etag,
)
from peterrec.service.http.routes.task_views import (
    Changed,
    TaskDetailView,
    TaskView,
    task_detail,
)


class TaskRequest(ClosedModel):
    """What an owner says about a task."""

    description: str = Field("", max_length=4096)
    is_sensitive: bool = False


def tasks_router(context: AdminContext) -> APIRouter:
    """``/tasks`` without versions, aliases and traffic."""
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
        """A task with its aliases, traffic and versions."""
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
    async def delete_task(
        caller: Caller, task: str, response: Response, if_match: IfMatch = None
    ) -> Changed:
        """Forget a task with its versions; requests for it get 404 from now on."""
        name = admin_task(caller, task)
        revision = await registry.delete_task(
            caller.tenant, name, caller.key_id, expected_revision(if_match)
        )
        await context.served(revision)
        set_etag(response, revision)
        return Changed(task=name, registry_revision=revision)

    return router
