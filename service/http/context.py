"""What the routes receive from their worker, and the steps that several of them share."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Header, Query, Request, Response
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, ConfigDict

from peterrec.model.files.backbone_info import BackboneInfo
from peterrec.patches.identity import TaskId, TaskRef, parse_task
from peterrec.patches.registry.records import TaskEntry
from peterrec.patches.registry.registry import Registry
from peterrec.service.errors import MalformedRequest
from peterrec.service.http.activity import Activity
from peterrec.service.http.asgi import MAX_TIMEOUT_MS, RequestHead
from peterrec.service.http.auth import Authenticator, Principal
from peterrec.service.http.fetching import BundleSources
from peterrec.service.http.profiler import Profiler
from peterrec.service.http.quotas import TenantQuotas
from peterrec.service.http.refusal_counts import RefusalCounts
from peterrec.service.http.refusal_pace import RefusalPace
from peterrec.service.http.seeing import Seeing
from peterrec.service.predict.admission import Admission
from peterrec.service.predict.device_link import DeviceLink
from peterrec.service.predict.loop_shares import LoopShares
from peterrec.service.predict.predictor import Predictor
from peterrec.service.predict.registered_versions import RegisteredVersions
from peterrec.service.predict.remembered import RememberedAnswers
from peterrec.service.predict.slices import Slices
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.system.reachable import Reachable
from peterrec.service.telemetry.events import Emit, Event

SYNC_TIMEOUT_S = 30.0
"""Seconds that a change may take to reach every worker of this replica."""

LOAD_TIMEOUT_S = 5.0
"""Seconds that a change waits for a version that has to be loaded first."""

VALIDATE_TIMEOUT_S = 120.0
"""Seconds that verification and probes of a pushed bundle may take."""

GIVE_WAY_S = 0.005
"""Pause between the steps of a registration, in seconds. A longer pause did not improve the latency
of other requests (``bench swap``) and made registering slower."""

_ETAG = re.compile(r'(?:W/)?"?(\d{1,18})"?\Z')


@dataclass(slots=True)
class Readiness:
    """Whether this worker accepts further requests."""

    is_draining: bool = False

    def drain(self) -> None:
        """Become unready, and from now on ask clients in every answer to reconnect."""
        self.is_draining = True


def _ignore(event: Event) -> None:
    pass


@dataclass(frozen=True, slots=True)
class PredictContext:
    """Collaborators of the prediction routes. ``registered``: asked about refused versions only.

    ``admission`` decides which calls are taken. ``refusal_pace`` slows down those that come back
    at once, and ``refusals`` counts them, like those of all other routes. ``seeing`` notes where
    the time of a request went. ``remembered`` names answers for those who tell outcomes. Streams
    are answered in ``slices``, and other calls in ``shares`` of the event loop's time.
    """

    table: TaskTable
    authenticator: Authenticator
    predictor: Predictor
    emit: Emit
    request_timeout_ms: int
    registered: RegisteredVersions
    admission: Admission
    remembered: RememberedAnswers
    timeout_limit_ms: int = MAX_TIMEOUT_MS
    refusal_pace: RefusalPace = field(default_factory=RefusalPace)
    refusals: RefusalCounts = field(default_factory=lambda: RefusalCounts(_ignore))
    quotas: TenantQuotas = field(default_factory=TenantQuotas)
    seeing: Seeing = field(default_factory=Seeing)
    slices: Slices = field(default_factory=Slices)
    shares: LoopShares = field(default_factory=LoopShares)


@dataclass(frozen=True, slots=True)
class AdminContext:
    """Collaborators of all other routes. ``streams``: the open streams of registry changes.

    ``profiler`` is None unless the settings allow profiles. ``others`` are further backbones,
    and ``reachable`` says which addresses webhooks may have.
    """

    table: TaskTable
    authenticator: Authenticator
    link: DeviceLink
    registry: Registry
    backbone: BackboneInfo
    upload_dir: Path
    bundle_size_limit_bytes: int
    readiness: Readiness = field(default_factory=Readiness)
    streams: set[object] = field(default_factory=set)
    quotas: TenantQuotas = field(default_factory=TenantQuotas)
    activity: Activity = field(default_factory=Activity)
    profiler: Profiler | None = None
    others: tuple[BackboneInfo, ...] = ()
    reachable: Reachable = field(default_factory=lambda: Reachable(()))
    sources: BundleSources = field(default_factory=BundleSources)

    @property
    def backbones(self) -> tuple[BackboneInfo, ...]:
        """All backbones of this server, by their places."""
        return (self.backbone, *self.others)

    async def give_way(self) -> None:
        """Let waiting requests run between two steps of a registration.

        Without a pause, the steps together would delay every request by their total time.
        """
        if self.link.is_busy:
            await asyncio.sleep(GIVE_WAY_S)

    async def wait_until_served(self, revision: int) -> None:
        """Wait until every worker of this replica serves a registry revision."""
        await self.link.sync(revision, SYNC_TIMEOUT_S)

    async def wait_until_served_as(
        self, ref: TaskRef, revision: int, is_so: Callable[[TaskEntry], bool]
    ) -> bool:
        """Wait until the replica serves a task as of a registry revision; False if it does not.

        A version that was not in use may have to be loaded again. Returns without it if that takes
        longer than ``LOAD_TIMEOUT_S``: its bundle may be one that this server refuses.
        """
        await self.wait_until_served(revision)
        if self._is_served(ref, revision, is_so):
            return True
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while not self._is_served(ref, revision, is_so):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not await self.table.turn(left_s):
                return False
        await self.wait_until_served(revision)
        return True

    def _is_served(self, ref: TaskRef, revision: int, is_so: Callable[[TaskEntry], bool]) -> bool:
        entry = self.table.entry(*ref)
        return entry is None or entry.revision > revision or is_so(entry)


class ClosedModel(BaseModel):
    """A request body in which unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


_bearer = HTTPBearer(
    auto_error=False, description="An API key: `prk_…`. Or a token of the server's issuer."
)
_api_key = APIKeyHeader(name="X-API-Key", auto_error=False, description="An API key: `prk_…`.")


async def get_context(request: Request) -> AdminContext:
    """Return the collaborators of the application that a request belongs to."""
    context: AdminContext = request.app.state.admin
    return context


Context = Annotated[AdminContext, Depends(get_context)]


async def find_caller(
    request: Request,
    context: Context,
    _bearer: object = Depends(_bearer),
    _key: object = Depends(_api_key),
) -> Principal:
    """Return the authenticated caller of a request."""
    head = RequestHead.read(request.scope)
    return await context.authenticator.identify(head.authorization, head.api_key)


Caller = Annotated[Principal, Depends(find_caller)]


def admin_task(caller: Principal, task: str) -> TaskId:
    """Check the name of a task and that the caller may administer it."""
    name = parse_task(task)
    caller.require("admin", name)
    return name


IfMatch = Annotated[
    str | None, Header(description='Make the change only if the task has this ETag: `"17"`.')
]
AllowNewOutputs = Annotated[
    bool,
    Query(
        description="Whether the answers may have other outputs than until now: another kind, "
        "other labels, another catalog or another unit."
    ),
]
IfNoneMatch = Annotated[
    str | None, Header(description="`*`: make the change only if the task does not exist yet.")
]


def expected_revision(if_match: str | None, if_none_match: str | None = None) -> int | None:
    """Return the revision that a task must have for a change.

    0 means that the task must not exist yet, None that any revision will do.
    """
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise MalformedRequest(
                f"If-None-Match {if_none_match[:40]!r} is not `*`.",
                hint="`*` makes the change only if the task does not exist yet.",
            )
        return 0
    if if_match is None or if_match.strip() == "*":
        return None
    match = _ETAG.match(if_match.strip())
    if match is None:
        raise MalformedRequest(
            f"If-Match {if_match[:40]!r} is not an ETag of a task.",
            hint="Send the ETag header of an earlier answer unchanged.",
        )
    return int(match.group(1))


def set_etag(response: Response, revision: int) -> None:
    """Set the ETag header to the task's revision, for a later If-Match."""
    response.headers["ETag"] = f'"{revision}"'
