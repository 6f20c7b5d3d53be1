"""Judges canaries and shadows by what all workers of this replica saw of them, and by the outcomes
that callers told to any replica.

A verdict takes effect on this replica immediately, even while Redis is away; then the registry gets
it, so that all replicas follow. A restarted device process starts to count from zero.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import TaskNotFound
from peterrec.patches.identity import Digest, TaskId, TaskRef, TenantId
from peterrec.patches.registry.outcomes import PROD, WINDOW_SLOTS, Hits
from peterrec.patches.registry.records import ActiveTraffic
from peterrec.patches.registry.registry import Registry
from peterrec.patches.registry.traffic import GuardReason, Observed
from peterrec.service.protocol.messages import TrafficSeen
from peterrec.service.protocol.served_task import Role
from peterrec.service.protocol.tally import Tallies, Tally
from peterrec.service.telemetry.events import (
    Emit,
    GuardBroken,
    TrafficCounted,
    TrafficEnded,
    TrafficMeasured,
)

log = structlog.get_logger()

UNGUARDED_WINDOW_S = 300
"""Length in seconds of the window of traffic without a guard, for its metrics."""

REPORT_INTERVAL_S = 1.0
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 5.0
"""Seconds between attempts to record a verdict in the registry, doubled each time."""


class Verdict(NamedTuple):
    """The bound of a guard that was broken, and what was observed."""

    reason: GuardReason
    observed: Observed


@dataclass(slots=True)
class TrafficWindow:
    """What was seen lately of one traffic; times are in monotonic seconds.

    ``told`` are the outcomes by digest, or ``PROD``, at all replicas and within the same time.
    """

    active: ActiveTraffic
    slots: deque[tuple[int, Tallies]] = field(default_factory=deque)
    told: Mapping[str, Hits] = field(default_factory=dict)
    is_judged: bool = False

    def add(self, seen: TrafficSeen, now: float) -> None:
        """Add the counts of a worker."""
        number = int(now / self._slot_s)
        if not self.slots or self.slots[-1][0] != number:
            self.slots.append((number, {}))
        tallies = self.slots[-1][1]
        for version in seen.versions:
            tallies.setdefault((version.digest, Role(version.role)), Tally()).add(version)
        self.forget(now)

    def forget(self, now: float) -> None:
        """Drop the slots that are older than the window."""
        while self.slots and self.slots[0][0] <= int(now / self._slot_s) - WINDOW_SLOTS:
            self.slots.popleft()

    def verdict(self) -> Verdict | None:
        """Return the verdict on the first version that breaks a bound; None if none does."""
        guard = self.active.traffic.guard
        if guard is None:
            return None
        for digest in self.active.traffic.digests():
            observed = self.observed(digest)
            reason = guard.broken_by(observed)
            if reason is not None:
                return Verdict(reason, observed)
        return None

    def observed(self, digest: Digest) -> Observed:
        """Sum up what was seen of a version as a canary and as a shadow."""
        tally = Tally()
        for found, role in self._keys():
            if role is not Role.PROD and found == digest:
                tally.add(self.tally(found, role))
        told, prod = self.told.get(digest, Hits()), self.told.get(PROD, Hits())
        outcomes = min(told.outcomes, prod.outcomes)
        drop = prod.hits / prod.outcomes - told.hits / told.outcomes if outcomes else None
        return Observed(
            digest,
            tally.requests,
            tally.errors,
            tally.p99_ms(),
            tally.mean_divergence(),
            drop,
            outcomes,
        )

    def tally(self, digest: str, role: Role) -> Tally:
        """Sum up what was seen of a version in one role."""
        total = Tally()
        for _, tallies in self.slots:
            if (digest, role) in tallies:
                total.add(tallies[digest, role])
        return total

    def measured(self, ref: TaskRef) -> list[TrafficMeasured]:
        """Return the latency and the divergence of the worst version in each role."""
        by_role: dict[Role, list[Tally]] = {}
        for digest, role in sorted(self._keys()):
            by_role.setdefault(role, []).append(self.tally(digest, role))
        return [
            TrafficMeasured(
                *ref,
                role,
                max(tally.p99_ms() for tally in tallies) / 1000,
                max((t.mean_divergence() or 0.0 for t in tallies if t.compared), default=None),
            )
            for role, tallies in by_role.items()
        ]

    def _keys(self) -> set[tuple[str, Role]]:
        return {key for _, tallies in self.slots for key in tallies}

    @property
    def _slot_s(self) -> float:
        guard = self.active.traffic.guard
        return (guard.window_s if guard else UNGUARDED_WINDOW_S) / WINDOW_SLOTS


class GuardWatch:
    """Counts, judges and reports the traffic of all tasks. Lives on the follower's event loop.

    ``active`` returns a task's traffic as it was last read; ``withdraw`` lets prod answer alone on
    this replica instead of the traffic of a revision; ``spawn`` runs a coroutine in the background.
    """

    def __init__(
        self,
        registry: Registry,
        active: Callable[[TaskRef], ActiveTraffic | None],
        withdraw: Callable[[TaskRef, int], Awaitable[None]],
        spawn: Callable[[Coroutine[None, None, None]], None],
        emit: Emit,
    ) -> None:
        self._registry = registry
        self._active = active
        self._withdraw = withdraw
        self._spawn = spawn
        self._emit = emit
        self._windows: dict[TaskRef, TrafficWindow] = {}

    def count(self, seen: TrafficSeen) -> None:
        """Count what a worker saw; if that breaks a bound, act on it."""
        ref = TaskRef(TenantId(seen.tenant), TaskId(seen.task))
        active = self._active(ref)
        if active is None or active.revision != seen.traffic_revision:
            return  # the traffic was changed or removed meanwhile
        window = self._windows.get(ref)
        if window is None or window.active != active:
            window = self._windows[ref] = TrafficWindow(active)
        window.add(seen, time.monotonic())
        for version in seen.versions:
            self._emit(TrafficCounted(*ref, version.role, version.requests, version.errors))
        self._check(ref, window)

    async def report_regularly(self) -> None:
        """Report each second how the versions do; drop the windows of traffic that has ended."""
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            now = time.monotonic()
            for ref, window in list(self._windows.items()):
                window.forget(now)
                if self._active(ref) != window.active:
                    del self._windows[ref]
                    self._emit(TrafficEnded(*ref))
                    continue
                for measured in window.measured(ref):
                    self._emit(measured)

    async def hear_regularly(self) -> None:
        """Judge each second by the outcomes that were told to any replica, where a guard does.

        While Redis is away, nobody can tell outcomes either.
        """
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            for ref, window in list(self._windows.items()):
                with suppress(PeterRecError):
                    await self._hear(ref, window)

    async def _hear(self, ref: TaskRef, window: TrafficWindow) -> None:
        guard, revision = window.active.traffic.guard, window.active.revision
        if guard is None or guard.max_hit_drop is None:
            return
        outcomes = self._registry.outcomes
        window.told = await outcomes.count_hits(ref, revision, guard.window_s, {})
        if self._windows.get(ref) is window:
            self._check(ref, window)

    def _check(self, ref: TaskRef, window: TrafficWindow) -> None:
        verdict = None if window.is_judged else window.verdict()
        if verdict is not None:
            window.is_judged = True
            self._spawn(self._trip(ref, window.active.revision, verdict))

    async def _trip(self, ref: TaskRef, revision: int, verdict: Verdict) -> None:
        """Stop the traffic on this replica, then record it in the registry, until that succeeds."""
        await self._withdraw(ref, revision)
        reason, observed = verdict
        log.warning("guard_broken", tenant=ref.tenant, task=ref.task, reason=reason.value)
        self._emit(GuardBroken(*ref, reason.value))
        retrying = AsyncRetrying(
            retry=retry_if_exception(_can_be_retried),
            wait=wait_exponential(FIRST_RETRY_S, max=LONGEST_RETRY_S),
            before_sleep=lambda state: _log_failure(ref, state),
        )
        try:
            async for attempt in retrying:
                with attempt:
                    tripped = await self._registry.trip_guard(*ref, reason, observed, revision)
        except TaskNotFound:
            return  # deleted with its traffic
        log.info("guard_tripped", task=ref.task, was_first=tripped.was_removed)


def _can_be_retried(error: BaseException) -> bool:
    return isinstance(error, PeterRecError) and not isinstance(error, TaskNotFound)


def _log_failure(ref: TaskRef, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, PeterRecError)
    log.warning("guard_not_recorded", task=ref.task, code=error.code)
