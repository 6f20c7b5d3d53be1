"""A task's traffic: canaries that answer a share of its users, shadows, and their guard."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from peterrec.patches.errors import InvalidTraffic
from peterrec.patches.identity import TaskId, TaskRef
from peterrec.patches.registry.records import TaskDetail, TrafficChanged, VersionRecord
from peterrec.patches.registry.traffic import PROD, Canary, Guard, Traffic
from peterrec.service.http.auth import Principal
from peterrec.service.http.routes.context import (
    AdminContext,
    ClosedModel,
    IfMatch,
    admin_task,
    expected_revision,
    find_caller,
    set_etag,
)
from peterrec.service.http.routes.finding import pick_version
from peterrec.service.http.routes.task_views import AliasView, Changed, TrafficView, numbers_of

VersionName = Annotated[
    int | str, Field(description="A registered version: number, digest or alias.")
]


class CanaryRequest(ClosedModel):
    """A version that answers a share of the users."""

    version: VersionName
    weight: int = Field(description="Its share in relation to all weights.")


class GuardRequest(ClosedModel):
    """Bounds that every canary and shadow must keep, or the whole traffic is removed."""

    max_error_share: float | None = Field(None, description="0 to 1.")
    max_p99_ms: float | None = None
    max_divergence: float | None = Field(
        None, description="0 to 1: mean difference from prod's answers."
    )
    min_requests: int = Field(100, description="Histories seen before anything is judged.")
    window_s: int = Field(300, description="Seconds that are looked back on.")


class TrafficRequest(ClosedModel):
    """What happens to requests that ask for no version of their own."""

    prod_weight: int = Field(0, description="Share of what prod names.")
    canary: list[CanaryRequest] = Field([], description="Versions that answer a share.")
    shadow: list[VersionName] = Field(
        [], description="Versions that compute every answer and give none."
    )
    guard: GuardRequest | None = None


class TaskTrafficView(BaseModel):
    """Who answers a task; ``traffic`` is null if prod answers alone."""

    task: str
    revision: int
    prod: AliasView | None
    traffic: TrafficView | None


class TrafficChangedView(Changed):
    """The traffic after and before a change; null: prod answers alone."""

    traffic: TrafficView | None
    previous: TrafficView | None


def traffic_router(context: AdminContext) -> APIRouter:
    """``/tasks/{task}/traffic``."""
    router = APIRouter(prefix="/tasks/{task}/traffic", tags=["traffic"])
    Caller = Annotated[Principal, Depends(find_caller(context.authenticator))]
    registry = context.registry

    @router.get("")
    async def get_traffic(caller: Caller, task: str, response: Response) -> TaskTrafficView:
        """Who answers the task's requests."""
        detail = await registry.get_task(caller.tenant, admin_task(caller, task))
        record = detail.record
        set_etag(response, record.revision)
        prod = record.aliases.get(PROD)
        return TaskTrafficView(
            task=record.task,
            revision=record.revision,
            prod=None if prod is None else AliasView.of(prod),
            traffic=TrafficView.of_active(record.traffic),
        )

    @router.put("")
    async def put_traffic(
        caller: Caller,
        task: str,
        body: TrafficRequest,
        response: Response,
        if_match: IfMatch = None,
    ) -> TrafficChangedView:
        """Split the task's requests from now on; a user stays with a version while weights do.

        The guard removes the traffic by itself, and says why in the audit trail.
        """
        name = admin_task(caller, task)
        expected = expected_revision(if_match)
        detail = await registry.get_task(caller.tenant, name)
        changed = await registry.put_traffic(
            caller.tenant, name, traffic_of(body, detail), caller.key_id, expected
        )
        await context.served_as(
            TaskRef(caller.tenant, name), changed.revision, lambda task: task.traffic is not None
        )
        set_etag(response, changed.revision)
        return _changed(name, changed, detail)

    @router.delete("")
    async def delete_traffic(
        caller: Caller, task: str, response: Response, if_match: IfMatch = None
    ) -> TrafficChangedView:
        """Let prod answer everything; nothing happens if it does already."""
        name = admin_task(caller, task)
        expected = expected_revision(if_match)
        detail = await registry.get_task(caller.tenant, name)
        changed = await registry.clear_traffic(caller.tenant, name, caller.key_id, expected)
        await context.served(changed.revision)
        set_etag(response, changed.revision)
        return _changed(name, changed, detail)

    return router


def traffic_of(body: TrafficRequest, detail: TaskDetail) -> Traffic:
    """The traffic that is asked for, its versions found among the task's."""
    canary = [pick_version(detail, each.version) for each in body.canary]
    shadow = [pick_version(detail, version) for version in body.shadow]
    _refuse_other_kinds(detail, [*canary, *shadow])
    return Traffic(
        prod_weight=body.prod_weight,
        canary=tuple(
            Canary(found.digest, asked.weight)
            for found, asked in zip(canary, body.canary, strict=True)
        ),
        shadow=tuple(found.digest for found in shadow),
        guard=None if body.guard is None else Guard(**body.guard.model_dump()),
    )


def _refuse_other_kinds(detail: TaskDetail, versions: list[VersionRecord]) -> None:
    """Callers of a ranking task send what only a ranking understands, and so on."""
    target = detail.record.aliases.get(PROD)
    prods = [each for each in detail.versions if target and each.digest == target.digest]
    for prod in prods:
        for other in versions:
            if other.summary.kind != prod.summary.kind:
                raise InvalidTraffic(
                    f"version {other.version} is a {other.summary.kind} bundle, prod's is "
                    f"a {prod.summary.kind} bundle.",
                    hint="Another kind of answer is another task: register it under a new name.",
                )


def _changed(task: TaskId, changed: TrafficChanged, detail: TaskDetail) -> TrafficChangedView:
    numbers = numbers_of(detail)
    return TrafficChangedView(
        task=task,
        registry_revision=changed.revision,
        traffic=TrafficView.of(changed.current, numbers),
        previous=TrafficView.of(changed.previous, numbers),
    )
