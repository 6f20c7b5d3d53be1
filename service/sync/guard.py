"""Judges canaries and shadows by what all workers of this replica see of them.

A verdict takes effect here at once, whether Redis answers or not; then the registry is told, so
that all replicas follow. A device process that is restarted begins to count anew.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import TaskNotFound
from peterrec.patches.identity import Digest, TaskId, TaskRef, TenantId
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

SLOTS = 30
"""A window forgets in steps of this part of its length."""

UNGUARDED_WINDOW_S = 300
REPORT_INTERVAL_S = 1.0
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 5.0


class Verdict(NamedTuple):
    """The bound that was broken, and by what."""

    reason: GuardReason
    observed: Observed


@dataclass(slots=True)
class TrafficWindow:
    """What was lately seen of one traffic; times are monotonic seconds."""

    active: ActiveTraffic
    slots: deque[tuple[int, Tallies]] = field(default_factory=deque)
    is_judged: bool = False

    def add(self, seen: TrafficSeen, now: float) -> None:
        """Count what a worker has seen."""
        number = int(now / self._slot_s)
        if not self.slots or self.slots[-1][0] != number:
            self.slots.append((number, {}))
        tallies = self.slots[-1][1]
        for version in seen.versions:
            tallies.setdefault((version.digest, Role(version.role)), Tally()).add(version)
        self.forget(now)

    def forget(self, now: float) -> None:
        """Drop what is older than the window."""
        while self.slots and self.slots[0][0] <= int(now / self._slot_s) - SLOTS:
            self.slots.popleft()

    def verdict(self) -> Verdict | None:
        """The first canary or shadow that breaks a bound of the guard."""
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
        """What was seen of a version as a canary and as a shadow."""
        tally = Tally()
        for found, role in self._keys():
            if found == digest and role is not Role.PROD:
                tally.add(self.tally(found, role))
        return Observed(
            digest, tally.requests, tally.errors, tally.p99_ms(), tally.mean_divergence()
        )

    def tally(self, digest: str, role: Role) -> Tally:
        """All that was seen of a version in one role."""
        total = Tally()
        for _, tallies in self.slots:
            if (digest, role) in tallies:
                total.add(tallies[digest, role])
        return total

    def measured(self, ref: TaskRef) -> list[TrafficMeasured]:
        """The worst version's latency and divergence in each role."""
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
        return (guard.window_s if guard else UNGUARDED_WINDOW_S) / SLOTS


class GuardWatch:
    """Lives on the follower's event loop.

    ``active`` tells a task's traffic as it was last read; ``withdraw`` lets this replica answer by
    prod alone, for the traffic of a revision; ``spawn`` runs a coroutine that nobody awaits.
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

    def see(self, seen: TrafficSeen) -> None:
        """Count what a worker saw; if that breaks a bound, act on it."""
        ref = TaskRef(TenantId(seen.tenant), TaskId(seen.task))
        active = self._active(ref)
        if active is None or active.revision != seen.traffic_revision:
            return  # it was changed or removed meanwhile
        window = self._windows.get(ref)
        if window is None or window.active != active:
            window = self._windows[ref] = TrafficWindow(active)
        window.add(seen, time.monotonic())
        for version in seen.versions:
            self._emit(TrafficCounted(*ref, version.role, version.requests, version.errors))
        verdict = None if window.is_judged else window.verdict()
        if verdict is not None:
            window.is_judged = True
            self._spawn(self._trip(ref, active.revision, verdict))

    async def report_sometimes(self) -> None:
        """Tell each second how the versions do; end what has no traffic any more."""
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

    async def _trip(self, ref: TaskRef, revision: int, verdict: Verdict) -> None:
        """Stop here first, then tell the registry, however long that takes."""
        await self._withdraw(ref, revision)
        reason, observed = verdict
        log.warning("guard_broken", tenant=ref.tenant, task=ref.task, reason=reason.value)
        self._emit(GuardBroken(*ref, reason.value))
        wait_s = FIRST_RETRY_S
        while True:
            try:
                tripped = await self._registry.trip_guard(*ref, reason, observed, revision)
            except TaskNotFound:
                return  # deleted with its traffic
            except PeterRecError as error:
                log.warning("guard_not_recorded", task=ref.task, code=error.code)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_RETRY_S)
            else:
                log.info("guard_tripped", task=ref.task, was_first=tripped.was_removed)
                return
