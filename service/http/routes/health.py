"""Is the process alive, and does it want requests? The only routes that need no key."""

import time
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from peterrec.service.http.routes.context import AdminContext


class Live(BaseModel):
    """The event loop answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Ready, or why not; and how old what is served may be."""

    status: Literal["ready", "not_ready"]
    reasons: list[str]
    registry_revision: int
    registry_synced_at: float | None
    registry_stale_s: float | None


def health_router(context: AdminContext) -> APIRouter:
    """``/livez`` and ``/readyz``."""
    router = APIRouter(tags=["health"])

    @router.get("/livez")
    async def live() -> Live:
        """The process lives: restart it if this does not answer."""
        return Live()

    @router.get("/readyz", responses={503: {"model": Ready, "description": "Not ready."}})
    async def ready(response: Response) -> Ready:
        """Send requests: the backbone is warm, the registry was read once, no drain is on.

        Says nothing about single bundles: one bad bundle never takes a server out.
        """
        answer = _readiness(context)
        response.status_code = 200 if answer.status == "ready" else 503
        return answer

    return router


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
