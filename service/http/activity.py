"""What the tasks of this replica are asked, as its metrics count it.

The supervisor has the counts of all workers. A worker asks it for the two series that it needs, and
keeps the answer for a while, so that however many people look, the metrics are read once.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
import msgspec

from peterrec.patches.identity import DEFAULT_TENANT, TenantId
from peterrec.service.errors import ActivityUnknown
from peterrec.service.predict.pace import Pace
from peterrec.service.telemetry.exposition import read_samples
from peterrec.service.telemetry.metrics_server import RECENT
from peterrec.service.telemetry.recent import RecentCalls

KEPT_S = 2.0
"""Seconds for which counts are kept."""

TIMEOUT_S = 2.0
"""Seconds for reading them: the supervisor is on the same machine."""

REQUESTS = "peterrec_requests_total"
SECONDS = "peterrec_request_duration_seconds_sum"

FINE = frozenset({"ok", "client_error", "client_left"})
"""Outcomes of calls with which nothing is wrong on the server's side."""


@dataclass(slots=True)
class TaskCounts:
    """Calls of one task since the server started, and the time that they took together.

    ``recent`` are those in each of the last intervals, oldest first; empty if there were none.
    """

    answered: int = 0
    failed: int = 0
    seconds: float = 0.0
    recent: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted until ``at``, Unix time in seconds, by tenant and task."""

    at: float
    tasks: Mapping[tuple[str, str], TaskCounts]

    def of(self, tenant: TenantId) -> dict[str, TaskCounts]:
        """Return the counts of a tenant's tasks."""
        return {task: counts for (owner, task), counts in self.tasks.items() if owner == tenant}


class Activity:
    """Reads the metrics at ``url``, the root of the supervisor's port, if there is one.

    ``token`` is what this process reads them by, if one is needed. Lives on the event loop.
    """

    def __init__(self, url: str = "http://nowhere.invalid", token: str | None = None) -> None:
        self._url = f"{url}/metrics"
        self._recent_url = f"{url}{RECENT}"
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._counts = Counts(0.0, {})

    async def counts(self) -> Counts:
        """Return counts that are at most ``KEPT_S`` old; ActivityUnknown if there are none."""
        async with self._lock:  # of those who ask together, one reads
            if time.monotonic() - self._read_at > KEPT_S:
                self._counts = await self._read()
                self._read_at = time.monotonic()
            return self._counts

    async def _read(self) -> Counts:
        names = {"name[]": [REQUESTS, SECONDS]}
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
                answer = await client.get(self._url, params=names, headers=self._headers)
                answer.raise_for_status()
                lately = await client.get(self._recent_url, headers=self._headers)
                lately.raise_for_status()
        except httpx.HTTPError as error:
            raise ActivityUnknown(self._url, error) from error
        try:
            counts = await counts_in(answer.text, time.time())
            return _with_recent(counts, msgspec.json.decode(lately.content, type=RecentCalls))
        except (ValueError, msgspec.MsgspecError) as error:  # something else listens there
            raise ActivityUnknown(self._url, error) from error


async def counts_in(text: str, at: float) -> Counts:
    """Read the counts out of the metrics' text form, in short steps; ValueError if it is none.

    A call that failed by its caller's own fault counts as answered: nothing is wrong with the task.
    """
    pace = Pace()
    tasks: dict[tuple[str, str], TaskCounts] = {}
    for sample in read_samples(text):
        if pace.is_due:
            await pace.rest()
        label = sample.labels.get("task")
        if sample.name not in {REQUESTS, SECONDS} or not label:
            continue
        counts = tasks.setdefault(_owner_and_task(label), TaskCounts())
        if sample.name == SECONDS:
            counts.seconds = sample.value
        elif sample.labels.get("outcome") in FINE:
            counts.answered += int(sample.value)
        else:
            counts.failed += int(sample.value)
    return Counts(at, tasks)


def _with_recent(counts: Counts, recent: RecentCalls) -> Counts:
    for label, calls in recent.tasks.items():
        if (found := counts.tasks.get(_owner_and_task(label))) is not None:
            found.recent = calls
    return counts


def _owner_and_task(label: str) -> tuple[str, str]:
    owner, _, task = label.rpartition("/")
    return owner or DEFAULT_TENANT, task
