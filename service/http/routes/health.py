"""Liveness and readiness of a worker: the only routes that need no API key."""

import time
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from peterrec.service.http.context import AdminContext, Context

router = APIRouter(tags=["health"])


class Live(BaseModel):
    """The worker process is running and answers requests."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Whether the worker is ready, the reasons if it is not, and the age of the served state."""

    status: Literal["ready", "not_ready"]
    reasons: list[str]
    registry_revision: int
    registry_synced_at: float | None
    registry_stale_s: float | None


@router.get("/livez")
async def live() -> Live:
    """Report that the process is alive. Restart it if this call gets no answer."""
    return Live()


@router.get("/readyz", responses={503: {"model": Ready, "description": "Not ready."}})
async def ready(context: Context, response: Response) -> Ready:
    """Report whether to send requests here.

    Ready means: the backbone is loaded, the registry was read once and no drain has begun. A single
    bad bundle does not make a server unready.
    """
    answer = _readiness(context)
    response.status_code = 200 if answer.status == "ready" else 503
    return answer


def _readiness(context: AdminContext) -> Ready:
    state, status = context.link.state, context.link.state.status
    synced_at = status.registry_synced_at if status and status.registry_synced_at else None
    is_waiting = context.link.is_connected and not state.is_ready
    problems = {
        "draining": context.readiness.is_draining,
        "device_unavailable": not context.link.is_connected,
        "registry_not_read": is_waiting and synced_at is None,
        "loading": is_waiting and synced_at is not None,
    }
    reasons = [name for name, is_so in problems.items() if is_so]
    return Ready(
        status="not_ready" if reasons else "ready",
        reasons=reasons,
        registry_revision=context.table.revision,
        registry_synced_at=synced_at,
        registry_stale_s=None if synced_at is None else max(0.0, time.time() - synced_at),
    )
