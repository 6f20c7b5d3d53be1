"""Who calls, and how busy the caller's tasks are: what a page needs before it shows anything."""

import math
from datetime import UTC, datetime

from fastapi import APIRouter
from pydantic import BaseModel

from peterrec.service.http.context import Caller, Context
from peterrec.service.telemetry.recent import EVERY_S

router = APIRouter(tags=["caller"])


class CallerView(BaseModel):
    """The key or token of a call: its tenant, and what it may do.

    ``key_id`` is the name in the audit trail; ``expires_at`` is null for one that does not expire.
    """

    key_id: str
    tenant: str
    scopes: list[str]
    expires_at: datetime | None


class TaskActivityView(BaseModel):
    """Calls of one task since this replica was started.

    ``answered`` includes calls that were refused by their caller's fault, ``failed`` has those
    beyond a quota, too. ``seconds`` is the time that all took together. ``recent`` has the calls of
    each of the last intervals, oldest first; it is empty if there were none.
    """

    answered: int
    failed: int
    seconds: float
    recent: list[int]


class ActivityView(BaseModel):
    """Calls by task, as of ``at`` (Unix time in seconds).

    They are up to two seconds old, and those of one replica: Prometheus has those of all. Tasks
    that nobody has asked are left out. An interval of ``recent`` has ``every_s`` seconds.
    """

    at: float
    every_s: float
    tasks: dict[str, TaskActivityView]


@router.get("/caller")
async def get_caller(caller: Caller) -> CallerView:
    """Return whom the key of this call belongs to, and its scopes."""
    return CallerView(
        key_id=caller.key_id,
        tenant=caller.tenant,
        scopes=[str(scope) for scope in caller.scopes],
        expires_at=None
        if math.isinf(caller.expires_at)
        else datetime.fromtimestamp(caller.expires_at, UTC),
    )


@router.get("/activity")
async def get_activity(caller: Caller, context: Context) -> ActivityView:
    """Count the calls of the tenant's tasks that this key may use or administer."""
    counts = await context.activity.counts()
    return ActivityView(
        at=counts.at,
        every_s=EVERY_S,
        tasks={
            task: TaskActivityView(
                answered=found.answered,
                failed=found.failed,
                seconds=found.seconds,
                recent=[*found.recent],
            )
            for task, found in counts.of(caller.tenant).items()
            if caller.may("admin", task) or caller.may("predict", task)
        },
    )
