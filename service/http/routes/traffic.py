"""A task's traffic: canaries that answer a share of its users, shadows, and their guard."""

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from peterrec.patches.identity import TaskId, TaskRef
from peterrec.patches.registry.records import TaskDetail, TrafficChanged
from peterrec.patches.registry.traffic import (
    MAX_CANARIES,
    MAX_SHADOWS,
    MAX_WEIGHT,
    MAX_WINDOW_S,
    PROD,
    Canary,
    Guard,
    Traffic,
)
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
from peterrec.service.http.find_version import pick_version
from peterrec.service.http.views.tasks import AliasView, Changed, TrafficView, numbers_of

router = APIRouter(prefix="/tasks/{task}/traffic", tags=["traffic"])

VersionName = Annotated[
    int | Annotated[str, Field(max_length=128)],
    Field(description="A registered version: number, digest or alias."),
]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[int, Field(ge=0, le=MAX_WEIGHT)]


class CanaryRequest(ClosedModel):
    """A version that answers a share of the users."""

    version: VersionName
    weight: Weight = Field(description="Its share, relative to the sum of all weights.")


class GuardRequest(ClosedModel):
    """Bounds for every canary and shadow. If one exceeds a bound, the whole traffic is removed."""

    max_error_share: Share | None = Field(None, description="0 to 1.")
    max_p99_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_divergence: Share | None = Field(
        None, description="0 to 1: mean difference from prod's answers."
    )
    max_hit_drop: Share | None = Field(
        None,
        description="0 to 1: how much less often than prod's its answers are right, by outcomes "
        "that callers told (POST /tasks/{task}/feedback), of which each needs min_requests.",
    )
    min_requests: int = Field(100, ge=1, description="Histories before a version is judged.")
    window_s: int = Field(
        300, ge=1, le=MAX_WINDOW_S, description="Length of the observed window in seconds."
    )


class TrafficRequest(ClosedModel):
    """How requests that do not ask for a version are split among versions."""

    prod_weight: Weight = Field(0, description="Share of the version that prod names.")
    canary: list[CanaryRequest] = Field(
        [], max_length=MAX_CANARIES, description="Versions that answer a share."
    )
    shadow: list[VersionName] = Field(
        [],
        max_length=MAX_SHADOWS,
        description="Versions that compute every answer without returning it.",
    )
    guard: GuardRequest | None = None


class TaskTrafficView(BaseModel):
    """The versions that answer a task; ``traffic`` is null if prod answers alone."""

    task: str
    revision: int
    prod: AliasView | None
    traffic: TrafficView | None


class TrafficChangedView(Changed):
    """The traffic after and before a change; null means that prod answers alone.

    ``is_served`` is false if this replica has not loaded one of the versions: prod answers alone.
    """

    traffic: TrafficView | None
    previous: TrafficView | None
    is_served: bool


@router.get("")
async def get_traffic(
    caller: Caller, context: Context, task: str, response: Response
) -> TaskTrafficView:
    """Return which versions answer the task's requests."""
    detail = await context.registry.get_task(caller.tenant, admin_task(caller, task))
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
    context: Context,
    task: str,
    body: TrafficRequest,
    response: Response,
    allow_new_outputs: AllowNewOutputs = False,
    if_match: IfMatch = None,
) -> TrafficChangedView:
    """Split the task's requests among versions from now on.

    A user keeps the same version as long as the weights stay the same. If a version exceeds a bound
    of the guard, the guard removes the traffic and writes the reason into the audit trail. Refused
    (409 outputs_differ) if a version's answers say other things than prod's, unless
    allow_new_outputs is true.
    """
    name, registry = admin_task(caller, task), context.registry
    expected = expected_revision(if_match)
    detail = await registry.get_task(caller.tenant, name)
    changed = await registry.put_traffic(
        caller.tenant,
        name,
        traffic_of(body, detail),
        caller.key_id,
        expected,
        allow_new_outputs=allow_new_outputs,
    )
    is_served = await context.wait_until_served_as(
        TaskRef(caller.tenant, name), changed.revision, lambda task: task.traffic is not None
    )
    set_etag(response, changed.revision)
    return _changed(name, changed, detail, is_served=is_served)


@router.delete("")
async def delete_traffic(
    caller: Caller, context: Context, task: str, response: Response, if_match: IfMatch = None
) -> TrafficChangedView:
    """Let prod answer all requests. Nothing changes if it does already."""
    name, registry = admin_task(caller, task), context.registry
    expected = expected_revision(if_match)
    detail = await registry.get_task(caller.tenant, name)
    changed = await registry.clear_traffic(caller.tenant, name, caller.key_id, expected)
    await context.wait_until_served(changed.revision)
    set_etag(response, changed.revision)
    return _changed(name, changed, detail, is_served=True)


def traffic_of(body: TrafficRequest, detail: TaskDetail) -> Traffic:
    """Build the traffic of a request; its versions are looked up among those of the task."""
    canary = [pick_version(detail, each.version) for each in body.canary]
    shadow = [pick_version(detail, version) for version in body.shadow]
    return Traffic(
        prod_weight=body.prod_weight,
        canary=tuple(
            Canary(found.digest, asked.weight)
            for found, asked in zip(canary, body.canary, strict=True)
        ),
        shadow=tuple(found.digest for found in shadow),
        guard=None if body.guard is None else Guard(**body.guard.model_dump()),
    )


def _changed(
    task: TaskId, changed: TrafficChanged, detail: TaskDetail, *, is_served: bool
) -> TrafficChangedView:
    numbers = numbers_of(detail)
    return TrafficChangedView(
        task=task,
        registry_revision=changed.revision,
        traffic=TrafficView.of(changed.current, numbers),
        previous=TrafficView.of(changed.previous, numbers),
        is_served=is_served,
    )
