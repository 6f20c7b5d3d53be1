"""Liveness and readiness of a worker: the only routes that need no API key."""

import time
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from peterrec.patches.errors import RegistryLost
from peterrec.patches.identity import format_digest
from peterrec.service.http.context import AdminContext, Context
from peterrec.service.protocol.messages import ProdBundles

router = APIRouter(tags=["health"])


class Live(BaseModel):
    """The worker process is running and answers requests."""

    status: Literal["alive"] = "alive"


class UnfitView(BaseModel):
    """A bundle that this server refuses, and the codes of the reasons."""

    digest: str
    codes: list[str]


class ProdBundlesView(BaseModel):
    """How many tasks have a `prod`, how many are answered, and how many are not as it is refused.

    `some` has the first ten bundles that are refused; the log names their tasks. The others are
    still being loaded.
    """

    registered: int
    answering: int
    unfit: int
    some: list[UnfitView]


class Ready(BaseModel):
    """Whether the worker is ready, the reasons if it is not, and the age of the served state.

    A worker that is ready has one reason at most: `registry_lost`, which says that Redis does not
    hold what is served. Predictions go on, changes are refused, and an operator has to look at it.
    """

    status: Literal["ready", "not_ready"]
    reasons: list[str]
    registry_revision: int
    registry_synced_at: float | None
    registry_stale_s: float | None
    prod_bundles: ProdBundlesView


@router.get("/livez")
async def live() -> Live:
    """Report that the process is alive. Restart it if this call gets no answer."""
    return Live()


@router.get("/readyz", responses={503: {"model": Ready, "description": "Not ready."}})
async def ready(context: Context, response: Response) -> Ready:
    """Report whether to send requests here.

    Ready means: the backbone is loaded, the registry was read once and no drain has begun. A single
    bad bundle does not make a server unready; one that refuses every bundle that `prod` of a task
    names is not ready (`no_bundle_fits`), and neither is one that has not loaded the share of them
    that its settings ask for (`bundles_missing`).
    """
    answer = readiness_of(context)
    response.status_code = 200 if answer.status == "ready" else 503
    return answer


def readiness_of(context: AdminContext) -> Ready:
    """Return whether to send requests to this worker, and the reasons if not."""
    state, status = context.link.state, context.link.state.status
    synced_at = status.registry_synced_at if status and status.registry_synced_at else None
    is_waiting = context.link.is_connected and not state.is_ready
    problems = {
        "draining": context.readiness.is_draining,
        "device_unavailable": not context.link.is_connected,
        "device_stuck": context.link.is_stuck,
        "registry_not_read": is_waiting and synced_at is None,
        "loading": is_waiting and synced_at is not None,
    }
    reasons = [name for name, is_so in problems.items() if is_so]
    if state.unready and context.link.is_connected and not is_waiting:
        reasons.append(state.unready)
    lost = [RegistryLost.code] if context.link.knowledge.loss else []
    return Ready(
        status="not_ready" if reasons else "ready",
        reasons=[*reasons, *lost],
        registry_revision=context.table.revision,
        registry_synced_at=synced_at,
        registry_stale_s=None if synced_at is None else max(0.0, time.time() - synced_at),
        prod_bundles=_view(state.prod),
    )


def _view(prod: ProdBundles) -> ProdBundlesView:
    """Leave out names of tenants and tasks: this route needs no key."""
    some = [UnfitView(digest=format_digest(each.digest), codes=each.codes) for each in prod.some]
    return ProdBundlesView(
        registered=prod.registered, answering=prod.answering, unfit=prod.unfit, some=some
    )
