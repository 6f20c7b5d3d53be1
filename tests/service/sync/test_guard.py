"""Verdicts on what all workers saw in a window, recorded in a real registry."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field

import pytest

from peterrec.patches.identity import DEFAULT_TENANT, Blob, Digest, TaskId, TaskRef
from peterrec.patches.registry.outcomes import PROD, WINDOW_SLOTS, Hits
from peterrec.patches.registry.records import ActiveTraffic, EventAction
from peterrec.patches.registry.registry import Registry, open_redis
from peterrec.patches.registry.traffic import Canary, Guard, GuardReason, Traffic
from peterrec.service.protocol.messages import TrafficSeen, VersionSeen
from peterrec.service.protocol.served_task import Role
from peterrec.service.protocol.tally import bucket_of
from peterrec.service.sync.guard import GuardWatch, TrafficWindow
from peterrec.service.telemetry.events import Event, GuardBroken, TrafficCounted
from tests.patches.registry.test_registry import SUMMARY
from tests.waiting import soon

TASK = TaskRef(DEFAULT_TENANT, TaskId("films"))
CANARY = Digest("c" * 64)
GUARD = Guard(max_error_share=0.1, max_p99_ms=50, max_divergence=0.3, min_requests=20, window_s=30)


def active(guard: Guard | None = GUARD, revision: int = 7) -> ActiveTraffic:
    traffic = Traffic(1, (Canary(CANARY, 1),), guard=guard)
    return ActiveTraffic(traffic, {CANARY: 2}, revision)


def seen(
    requests: int,
    errors: int = 0,
    latency_ms: float = 1.0,
    divergence: float = 0.0,
    *,
    digest: str = CANARY,
    role: Role = Role.CANARY,
    revision: int = 7,
) -> TrafficSeen:
    latencies = {bucket_of(latency_ms): requests}
    version = VersionSeen(digest, role, requests, errors, latencies, requests, divergence)
    return TrafficSeen(*TASK, revision, [version])


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (seen(20, errors=3), GuardReason.ERROR_SHARE),
        (seen(20, latency_ms=60), GuardReason.P99_MS),
        (seen(20, divergence=8.0), GuardReason.DIVERGENCE),
        (seen(19, errors=19), None),
        (seen(20, errors=2, latency_ms=49, divergence=6.0), None),
        (seen(20, errors=20, role=Role.PROD), None),
    ],
)
def test_each_bound_is_judged_once_enough_was_seen(found, reason):
    window = TrafficWindow(active())
    window.add(found, 100.0)
    verdict = window.verdict()
    assert (verdict and verdict.reason) == reason


def test_what_several_workers_saw_in_both_roles_is_judged_together():
    window = TrafficWindow(active())
    window.add(seen(10, errors=2), 100.0)
    window.add(seen(5, errors=0), 101.0)
    assert window.verdict() is None
    window.add(seen(5, errors=1, role=Role.SHADOW), 102.0)
    verdict = window.verdict()
    assert verdict is not None
    assert (verdict.observed.requests, verdict.observed.errors) == (20, 3)


def test_what_is_older_than_the_window_is_forgotten():
    window = TrafficWindow(active())
    window.add(seen(19, errors=19), 100.0)
    window.add(seen(19), 100.0 + 31)
    assert window.verdict() is None
    assert window.observed(CANARY).requests == 19
    assert len(window.slots) <= WINDOW_SLOTS


def test_without_a_guard_nothing_is_judged_and_all_is_measured():
    window = TrafficWindow(active(guard=None))
    window.add(seen(100, errors=100, latency_ms=10, divergence=50), 100.0)
    assert window.verdict() is None
    (measured,) = window.measured(TASK)
    assert (measured.role, measured.divergence) == ("canary", 0.5)
    assert measured.p99_s == pytest.approx(0.01, rel=0.01)


@dataclass
class Watched:
    """A watch over a registry, and what it did."""

    registry: Registry
    events: list[Event] = field(default_factory=list)
    withdrawn: list[tuple[TaskRef, int]] = field(default_factory=list)
    spawned: list["asyncio.Task[None]"] = field(default_factory=list)
    known: ActiveTraffic | None = None

    def watch(self) -> GuardWatch:
        async def withdraw(ref: TaskRef, revision: int) -> None:
            self.withdrawn.append((ref, revision))

        def spawn(work: Coroutine[None, None, None]) -> None:
            self.spawned.append(asyncio.create_task(work))

        return GuardWatch(
            self.registry, lambda ref: self.known, withdraw, spawn, self.events.append
        )

    async def read(self) -> ActiveTraffic | None:
        self.known = (await self.registry.get_task(*TASK)).record.traffic
        return self.known


@pytest.fixture
async def watched(registry: Registry) -> Watched:
    """A task with a guarded canary."""
    digests = [await registry.blobs.put(Blob(content)) for content in (b"one", b"two")]
    for digest in reversed(digests):
        await registry.add_version(*TASK, digest, SUMMARY, "ann")
    await registry.put_traffic(*TASK, Traffic(1, (Canary(digests[1], 1),), (), GUARD), "ann")
    watched = Watched(registry)
    await watched.read()
    return watched


def failing(active: ActiveTraffic | None) -> TrafficSeen:
    assert active is not None
    (digest,) = active.traffic.digests()
    return seen(50, errors=50, digest=digest, revision=active.revision)


async def test_a_verdict_acts_here_first_and_is_recorded_once(watched):
    watch, found = watched.watch(), failing(watched.known)
    watch.count(found)
    watch.count(found)
    await asyncio.gather(*watched.spawned)
    assert watched.withdrawn == [(TASK, found.traffic_revision)]
    assert [e.reason for e in watched.events if isinstance(e, GuardBroken)] == ["error_share"]
    assert await watched.read() is None
    trip = (await watched.registry.feed.events())[-1]
    assert (trip.action, trip.reason) == (EventAction.TRIP_GUARD, GuardReason.ERROR_SHARE)


async def test_another_replica_that_was_first_is_no_trouble(watched):
    first, second = watched.watch(), watched.watch()
    found = failing(watched.known)
    first.count(found)
    second.count(found)
    await asyncio.gather(*watched.spawned)
    actions = [event.action for event in await watched.registry.feed.events()]
    assert actions.count(EventAction.TRIP_GUARD) == 1


async def test_outcomes_that_several_replicas_were_told_are_judged_together(watched):
    """None of the two was told enough; this replica has answered nothing itself."""
    assert watched.known is not None
    (canary,) = watched.known.traffic.canary
    guard = Guard(max_hit_drop=0.2, min_requests=20)
    await watched.registry.put_traffic(*TASK, Traffic(1, (canary,), (), guard), "ann")
    await watched.read()
    revision = watched.known.revision
    watch = watched.watch()
    hearing = asyncio.create_task(watch.hear_regularly())
    for _ in range(2):
        hits = {PROD: Hits(10, 9.0), canary.digest: Hits(10, 5.0)}
        await watched.registry.outcomes.count_hits(TASK, revision, guard.window_s, hits)
        assert watched.withdrawn == []
        watch.count(TrafficSeen(*TASK, revision, []))
    await soon(lambda: watched.withdrawn == [(TASK, revision)])
    await asyncio.gather(*watched.spawned)
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)
    trip = (await watched.registry.feed.events())[-1]
    assert (trip.action, trip.reason) == (EventAction.TRIP_GUARD, GuardReason.HIT_DROP)


async def test_what_was_seen_of_earlier_traffic_judges_nothing(watched):
    found = failing(watched.known)
    assert watched.known is not None
    again = Traffic(2, watched.known.traffic.canary, (), GUARD)
    await watched.registry.put_traffic(*TASK, again, "ann")
    await watched.read()
    watched.watch().count(found)
    assert (watched.spawned, watched.events) == ([], [])


async def test_a_task_that_was_deleted_meanwhile_ends_the_matter(watched):
    watch, found = watched.watch(), failing(watched.known)
    await watched.registry.delete_task(*TASK, "ann")
    watch.count(found)
    await asyncio.gather(*watched.spawned)
    assert watched.withdrawn


async def test_rows_are_counted_and_versions_measured_until_the_traffic_ends(watched):
    watch = watched.watch()
    watch.count(seen(3, digest=next(iter(watched.known.versions)), revision=watched.known.revision))
    assert [type(event) for event in watched.events] == [TrafficCounted]
    reporting = asyncio.create_task(watch.report_regularly())
    await soon(lambda: "TrafficMeasured" in {type(e).__name__ for e in watched.events})
    watched.known = None
    await soon(lambda: "TrafficEnded" in {type(e).__name__ for e in watched.events})
    reporting.cancel()
    await asyncio.gather(reporting, return_exceptions=True)


async def test_a_verdict_acts_here_while_redis_is_away_and_is_recorded_when_it_is_back(
    watched, redis_url, redis_prefix, tmp_path, monkeypatch
):
    monkeypatch.setattr("peterrec.service.sync.guard.FIRST_RETRY_S", 0.01)
    socket = tmp_path / "redis.sock"
    registry = Registry(open_redis(f"unix://{socket}", retries=0), redis_prefix)
    cut_off = Watched(registry, known=watched.known)
    cut_off.watch().count(failing(watched.known))
    await soon(lambda: bool(cut_off.withdrawn))
    assert await watched.read() is not None
    socket.symlink_to(redis_url.removeprefix("unix://").partition("?")[0])
    async with asyncio.timeout(10):
        await asyncio.gather(*cut_off.spawned)
    assert await watched.read() is None
    await registry.close()
