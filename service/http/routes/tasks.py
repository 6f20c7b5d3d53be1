"""Tasks: list, read, create, update, delete. A change is answered once this replica serves it."""

from fastapi import APIRouter, Response
from pydantic import Field

from peterrec.patches.registry.records import TaskOptions
from peterrec.service.http.context import (
    Caller,
    ClosedModel,
    Context,
    IfMatch,
    IfNoneMatch,
    admin_task,
    expected_revision,
    set_etag,
)
from peterrec.service.http.views.tasks import Changed, TaskDetailView, TaskView, task_detail

router = APIRouter(prefix="/tasks", tags=["tasks"])


class TaskRequest(ClosedModel):
    """The properties of a task that its owner sets."""

    description: str = Field("", max_length=4096)
    is_sensitive: bool = False


@router.get("")
async def list_tasks(caller: Caller, context: Context) -> list[TaskView]:
    """List the tenant's tasks that this key may use or administer, by name."""
    records = await context.registry.list_tasks(caller.tenant)
    return [
        TaskView.of(record)
        for record in records
        if caller.may("admin", record.task) or caller.may("predict", record.task)
    ]


@router.get("/{task}")
async def get_task(
    caller: Caller, context: Context, task: str, response: Response
) -> TaskDetailView:
    """Return a task with its aliases, traffic and versions, and what this replica serves of it."""
    detail = await context.registry.get_task(caller.tenant, admin_task(caller, task))
    set_etag(response, detail.record.revision)
    served = context.table.entry(caller.tenant, detail.record.task)
    return task_detail(detail.record, detail.versions, served)


@router.put("/{task}", responses={201: {"model": Changed, "description": "Created."}})
async def put_task(
    caller: Caller,
    context: Context,
    task: str,
    body: TaskRequest,
    response: Response,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Changed:
    """Create an empty task, or update the description of an existing one."""
    name = admin_task(caller, task)
    put = await context.registry.put_task(
        caller.tenant,
        name,
        TaskOptions(body.description, body.is_sensitive),
        caller.key_id,
        expected_revision(if_match, if_none_match),
    )
    await context.wait_until_served(put.revision)
    response.status_code = 201 if put.was_created else 200
    set_etag(response, put.revision)
    return Changed(task=name, registry_revision=put.revision)


@router.delete("/{task}")
async def delete_task(
    caller: Caller, context: Context, task: str, response: Response, if_match: IfMatch = None
) -> Changed:
    """Delete a task with its versions. Requests for it get 404 from now on."""
    name = admin_task(caller, task)
    revision = await context.registry.delete_task(
        caller.tenant, name, caller.key_id, expected_revision(if_match)
    )
    await context.wait_until_served(revision)
    set_etag(response, revision)
    return Changed(task=name, registry_revision=revision)
