"""What the admin routes receive, and the few things that all of them do."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Header, Request, Response
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, ConfigDict

from peterrec.model.files.backbone_info import BackboneInfo
from peterrec.patches.identity import TaskId, TaskRef, parse_task
from peterrec.patches.registry.records import TaskEntry
from peterrec.patches.registry.registry import Registry
from peterrec.service.errors import MalformedRequest
from peterrec.service.http.auth import Authenticator, Principal
from peterrec.service.predict.device_link import DeviceLink
from peterrec.service.predict.task_table import TaskTable

SYNC_TIMEOUT_S = 30.0
"""How long a change may take to reach every worker of this replica."""

LOAD_TIMEOUT_S = 5.0
"""How long a change waits for a version that has to be loaded first."""

PROVE_TIMEOUT_S = 120.0
"""How long verification and probes of a pushed bundle may take."""

GIVE_WAY_S = 0.005
"""Longer did not spare the other requests more (``bench swap``), only made registering slower."""

_ETAG = re.compile(r'(?:W/)?"?(\d{1,18})"?\Z')


@dataclass(slots=True)
class Readiness:
    """Whether this worker wants to be sent requests."""

    is_draining: bool = False

    def drain(self) -> None:
        """From now on unready, and every answer asks its client to connect elsewhere."""
        self.is_draining = True


@dataclass(frozen=True, slots=True)
class AdminContext:
    """Collaborators of every route but the predictions."""

    table: TaskTable
    authenticator: Authenticator
    link: DeviceLink
    registry: Registry
    backbone: BackboneInfo
    spool_dir: Path
    bundle_size_limit_bytes: int
    readiness: Readiness = field(default_factory=Readiness)

    async def give_way(self) -> None:
        """Between the steps of a registration: let the requests that are under way go on.

        One after another its steps would hold up every request for all of their time.
        """
        if self.link.is_busy:
            await asyncio.sleep(GIVE_WAY_S)

    async def served(self, revision: int) -> None:
        """Wait until every worker of this replica serves a registry revision."""
        await self.link.sync(revision, SYNC_TIMEOUT_S)

    async def served_as(
        self, ref: TaskRef, revision: int, is_so: Callable[[TaskEntry], bool]
    ) -> None:
        """Wait until the replica serves a revision, and the task as it is there: a version that
        nobody asked for lately has to be loaded again. Gives up on one that can't be."""
        await self.served(revision)
        if self._is_served(ref, revision, is_so):
            return
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while not self._is_served(ref, revision, is_so):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not await self.table.turn(left_s):
                return
        await self.served(revision)

    def _is_served(self, ref: TaskRef, revision: int, is_so: Callable[[TaskEntry], bool]) -> bool:
        entry = self.table.entry(*ref)
        return entry is None or entry.revision > revision or is_so(entry)


class ClosedModel(BaseModel):
    """A body whose unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


_bearer = HTTPBearer(auto_error=False, description="An API key: `prk_…`.")
_api_key = APIKeyHeader(name="X-API-Key", auto_error=False, description="An API key: `prk_…`.")

Find = Callable[[Request], Awaitable[Principal]]


def find_caller(authenticator: Authenticator) -> Find:
    """A dependency that gives a route its authenticated caller."""

    async def find(
        request: Request, _bearer: object = Depends(_bearer), _key: object = Depends(_api_key)
    ) -> Principal:
        headers = request.headers
        return authenticator.authenticate(
            headers.get("authorization", "").encode(), headers.get("x-api-key", "").encode()
        )

    return find


def admin_task(caller: Principal, task: str) -> TaskId:
    """The checked name of a task that the caller may administer."""
    name = parse_task(task)
    caller.require("admin", name)
    return name


IfMatch = Annotated[
    str | None, Header(description='Do it only if the task\'s ETag is this one: `"17"`.')
]
IfNoneMatch = Annotated[
    str | None, Header(description="`*`: do it only if the task does not exist yet.")
]


def expected_revision(if_match: str | None, if_none_match: str | None = None) -> int | None:
    """The revision that the caller insists on: 0 for no task yet, None if it does not matter."""
    if if_none_match is not None and if_none_match.strip() == "*":
        return 0
    if if_match is None or if_match.strip() == "*":
        return None
    match = _ETAG.match(if_match.strip())
    if match is None:
        raise MalformedRequest(
            f"If-Match {if_match[:40]!r} is no ETag of a task.",
            hint="Send the ETag header of an earlier answer unchanged.",
        )
    return int(match.group(1))


def set_etag(response: Response, revision: int) -> None:
    """Name the task's revision, for a later If-Match."""
    response.headers["ETag"] = f'"{revision}"'
