"""Canaries, shadows and their guard: who is chosen, what is kept, what a guard undoes."""

import asyncio
from collections import Counter

import pytest

from peterrec.model.errors import Category
from peterrec.patches.errors import (
    AliasInUse,
    InvalidTraffic,
    NoProdVersion,
    NothingToRollBack,
    StaleRevision,
    TaskNotFound,
    VersionInUse,
    VersionNotFound,
)
from peterrec.patches.identity import DEFAULT_TENANT, Blob, Digest, TaskId, TaskRef, digest_of
from peterrec.patches.registry.records import ActiveTraffic, EventAction, GuardTripped, TaskOptions
from peterrec.patches.registry.registry import SYSTEM, Registry
from peterrec.patches.registry.serialization import traffic_of, traffic_text
from peterrec.patches.registry.traffic import (
    MAX_CANARIES,
    MAX_SHADOWS,
    MAX_WEIGHT,
    Canary,
    Guard,
    GuardReason,
    Observed,
    Traffic,
)
from tests.patches.registry.test_registry import SUMMARY

TASK = TaskId("gender")
REF = TaskRef(DEFAULT_TENANT, TASK)
A, B, C = (digest_of(content) for content in (b"a", b"b", b"c"))
USERS = [f"user-{number}".encode() for number in range(4000)]
GUARD = Guard(max_error_share=0.02, max_p99_ms=50, max_divergence=0.2)
CANARY = Traffic(90, (Canary(B, 10),), shadow=(C,), guard=GUARD)
SEEN = Observed(B, requests=1000, errors=100, p99_ms=12.5, divergence=0.05)


async def register(registry: Registry, content: bytes, alias: str | None) -> Digest:
    digest = await registry.blobs.put(Blob(content))
    await registry.add_version(DEFAULT_TENANT, TASK, digest, SUMMARY, "ann", alias)
    return digest


@pytest.fixture
async def rollout(registry: Registry) -> Registry:
    """A registry at revision 3: A is prod, B and C are registered too."""
    await register(registry, b"a", "prod")
    await register(registry, b"b", None)
    await register(registry, b"c", None)
    return registry


async def active(registry: Registry) -> ActiveTraffic | None:
    return (await registry.get_task(DEFAULT_TENANT, TASK)).record.traffic


def answers(traffic: Traffic) -> list[Digest | None]:
    return [traffic.choose(REF, user) for user in USERS]


def test_users_are_shared_out_by_the_weights() -> None:
    found = Counter(answers(Traffic(70, (Canary(B, 20), Canary(C, 10)))))
    for digest, share in ((None, 0.7), (B, 0.2), (C, 0.1)):
        assert found[digest] / len(USERS) == pytest.approx(share, abs=0.02)


def test_a_user_always_gets_the_same_version() -> None:
    assert answers(CANARY) == answers(CANARY)


def test_with_no_weight_for_prod_every_user_gets_a_canary() -> None:
    assert set(answers(Traffic(0, (Canary(B, 1),)))) == {B}


def test_a_canary_without_weight_answers_nobody() -> None:
    assert set(answers(Traffic(1, (Canary(B, 0),)))) == {None}


def test_shadows_never_answer() -> None:
    assert set(answers(Traffic(1, shadow=(B, C)))) == {None}


def test_a_higher_weight_only_adds_users_to_the_canary() -> None:
    few, many = (answers(Traffic(90, (Canary(B, weight),))) for weight in (10, 30))
    assert all(after == B for before, after in zip(few, many, strict=True) if before == B)
    assert many.count(B) > few.count(B)


def test_another_weight_of_one_canary_moves_nobody_between_the_others() -> None:
    before = answers(Traffic(80, (Canary(B, 10), Canary(C, 10))))
    after = answers(Traffic(80, (Canary(B, 30), Canary(C, 10))))
    assert all(now in (was, B) for was, now in zip(before, after, strict=True))


def test_another_canary_version_and_another_task_take_other_users() -> None:
    one = {user for user in USERS if Traffic(9, (Canary(B, 1),)).choose(REF, user)}
    other_version = {user for user in USERS if Traffic(9, (Canary(C, 1),)).choose(REF, user)}
    other_task = TaskRef(DEFAULT_TENANT, TaskId("age"))
    elsewhere = {user for user in USERS if Traffic(9, (Canary(B, 1),)).choose(other_task, user)}
    for others in (other_version, elsewhere):
        assert len(one & others) / len(one) < 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Traffic(100),
        lambda: Traffic(0, (Canary(B, 0),)),
        lambda: Traffic(0, shadow=(B,)),
        lambda: Traffic(-1, (Canary(B, 10),)),
        lambda: Traffic(MAX_WEIGHT + 1, (Canary(B, 10),)),
        lambda: Canary(B, -1),
        lambda: Canary(B, MAX_WEIGHT + 1),
        lambda: Traffic(1, (Canary(B, 1), Canary(B, 2))),
        lambda: Traffic(1, shadow=(B, B)),
        lambda: Traffic(1, shadow=tuple(Digest(str(n)) for n in range(MAX_SHADOWS + 1))),
        lambda: Traffic(1, tuple(Canary(Digest(str(n)), 1) for n in range(MAX_CANARIES + 1))),
        lambda: Guard(),
        lambda: Guard(max_error_share=1.5),
        lambda: Guard(max_error_share=-0.1),
        lambda: Guard(max_divergence=2),
        lambda: Guard(max_p99_ms=0),
        lambda: Guard(max_p99_ms=float("inf")),
        lambda: Guard(max_p99_ms=float("nan")),
        lambda: Guard(max_error_share=0.1, min_requests=0),
        lambda: Guard(max_error_share=0.1, window_s=0),
    ],
)
def test_traffic_that_contradicts_itself_is_refused(make) -> None:
    with pytest.raises(InvalidTraffic) as refused:
        make()
    assert refused.value.category is Category.MALFORMED


@pytest.mark.parametrize(
    ("observed", "reason"),
    [
        (Observed(B, 1000, 20, 50.0, 0.2), None),
        (Observed(B, 1000, 21, 50.0, 0.2), GuardReason.ERROR_SHARE),
        (Observed(B, 1000, 0, 50.1, 0.2), GuardReason.P99_MS),
        (Observed(B, 1000, 0, 50.0, 0.21), GuardReason.DIVERGENCE),
        (Observed(B, 1000, 0, float("nan"), 0.0), GuardReason.P99_MS),
        (Observed(B, 1000, 0, 1.0, None), None),
        (Observed(B, 99, 99, 1e9, 1.0), None),
    ],
)
def test_a_guard_judges_what_it_has_seen_enough_of(
    observed: Observed, reason: GuardReason | None
) -> None:
    assert GUARD.broken_by(observed) == reason


def test_what_has_no_bound_is_not_judged() -> None:
    assert Guard(max_p99_ms=1000).broken_by(Observed(B, 1000, 1000, 1.0, 1.0)) is None


def test_traffic_survives_being_stored() -> None:
    assert traffic_of(traffic_text(CANARY)) == CANARY
    assert traffic_of(None) is None


async def test_traffic_is_part_of_the_task_and_of_the_snapshot(rollout: Registry) -> None:
    put = await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann")
    assert (put.revision, put.current, put.previous) == (4, CANARY, None)
    expected = ActiveTraffic(CANARY, {B: 2, C: 3}, revision=4)
    assert await active(rollout) == expected
    assert (await rollout.feed.snapshot()).tasks[REF].traffic == expected


async def test_the_same_traffic_again_changes_nothing(rollout: Registry) -> None:
    await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann")
    again = await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann")
    assert (again.revision, again.previous) == (4, CANARY)
    assert await rollout.feed.revision() == 4


async def test_traffic_names_registered_versions_only(rollout: Registry) -> None:
    stored = await rollout.blobs.put(Blob(b"stored but not registered"))
    with pytest.raises(VersionNotFound, match=stored):
        await rollout.put_traffic(DEFAULT_TENANT, TASK, Traffic(1, (Canary(stored, 1),)), "ann")
    assert await rollout.feed.revision() == 3


async def test_traffic_needs_a_version_named_prod(registry: Registry) -> None:
    digest = await register(registry, b"a", None)
    with pytest.raises(NoProdVersion) as refused:
        await registry.put_traffic(DEFAULT_TENANT, TASK, Traffic(1, shadow=(digest,)), "ann")
    assert refused.value.category is Category.CONFLICT


async def test_prod_stays_while_there_is_traffic(rollout: Registry) -> None:
    await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann")
    with pytest.raises(AliasInUse, match="'prod'"):
        await rollout.delete_alias(DEFAULT_TENANT, TASK, "prod", "ann")
    await rollout.clear_traffic(DEFAULT_TENANT, TASK, "ann")
    await rollout.delete_alias(DEFAULT_TENANT, TASK, "prod", "ann")


async def test_a_version_in_the_traffic_cannot_be_deleted(rollout: Registry) -> None:
    await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann")
    await rollout.set_alias(DEFAULT_TENANT, TASK, "next", B, "ann")
    with pytest.raises(VersionInUse, match="aliases: next, and by its traffic"):
        await rollout.delete_version(DEFAULT_TENANT, TASK, B, "ann")
    with pytest.raises(VersionInUse, match="named by its traffic"):
        await rollout.delete_version(DEFAULT_TENANT, TASK, C, "ann")
    await rollout.clear_traffic(DEFAULT_TENANT, TASK, "ann")
    await rollout.delete_version(DEFAULT_TENANT, TASK, C, "ann")


async def test_cleared_traffic_is_gone_and_clearing_again_changes_nothing(
    rollout: Registry,
) -> None:
    await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann")
    cleared = await rollout.clear_traffic(DEFAULT_TENANT, TASK, "ann")
    assert (cleared.revision, cleared.current, cleared.previous) == (5, None, CANARY)
    assert await active(rollout) is None
    assert await rollout.clear_traffic(DEFAULT_TENANT, TASK, "ann") == (5, None, None)


async def test_a_rollback_restores_the_traffic_of_the_previous_state(rollout: Registry) -> None:
    await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann")
    await rollout.set_alias(DEFAULT_TENANT, TASK, "prod", B, "ann")
    await rollout.clear_traffic(DEFAULT_TENANT, TASK, "ann")
    back = await rollout.rollback(DEFAULT_TENANT, TASK, "bob")
    assert (back.current.digest, back.traffic) == (B, CANARY)
    back = await rollout.rollback(DEFAULT_TENANT, TASK, "bob")
    assert (back.current.digest, back.traffic) == (A, CANARY)
    assert await active(rollout) == ActiveTraffic(CANARY, {B: 2, C: 3}, revision=8)
    back = await rollout.rollback(DEFAULT_TENANT, TASK, "bob")
    assert (back.current.digest, back.traffic) == (A, None)
    event = (await rollout.feed.events(since=6))[-1]
    assert (event.previous_traffic, event.traffic) == (CANARY, None)
    assert event.aliases == event.previous_aliases == back.aliases


async def test_a_guard_removes_the_traffic_and_says_why(rollout: Registry) -> None:
    put = await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann")
    tripped = await rollout.trip_guard(
        DEFAULT_TENANT, TASK, GuardReason.ERROR_SHARE, SEEN, put.revision
    )
    assert tripped == GuardTripped(5, was_removed=True)
    assert await active(rollout) is None
    event = (await rollout.feed.events(since=4))[0]
    assert (event.action, event.actor) == (EventAction.TRIP_GUARD, SYSTEM)
    assert (event.reason, event.observed) == (GuardReason.ERROR_SHARE, SEEN)
    assert (event.previous_traffic, event.traffic) == (CANARY, None)


async def test_many_replicas_that_see_it_at_once_remove_the_canary_once(rollout: Registry) -> None:
    put = await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann")
    results = await asyncio.gather(
        *(
            rollout.trip_guard(DEFAULT_TENANT, TASK, GuardReason.P99_MS, SEEN, put.revision)
            for _ in range(30)
        )
    )
    assert [result.was_removed for result in results].count(True) == 1
    assert {result.revision for result in results} == {5}
    assert await rollout.feed.revision() == 5


async def test_a_guard_s_late_verdict_does_not_touch_newer_traffic(rollout: Registry) -> None:
    old = await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann")
    await rollout.put_traffic(DEFAULT_TENANT, TASK, Traffic(1, (Canary(C, 1),)), "ann")
    late = await rollout.trip_guard(DEFAULT_TENANT, TASK, GuardReason.P99_MS, SEEN, old.revision)
    assert late == GuardTripped(5, was_removed=False)
    assert await active(rollout) is not None
    await rollout.delete_task(DEFAULT_TENANT, TASK, "ann")
    with pytest.raises(TaskNotFound):
        await rollout.trip_guard(DEFAULT_TENANT, TASK, GuardReason.P99_MS, SEEN, old.revision)


async def test_other_changes_of_the_task_do_not_stop_a_guard(rollout: Registry) -> None:
    put = await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann")
    await rollout.put_task(DEFAULT_TENANT, TASK, TaskOptions("new"), "ann")
    tripped = await rollout.trip_guard(
        DEFAULT_TENANT, TASK, GuardReason.DIVERGENCE, SEEN, put.revision
    )
    assert tripped.was_removed


async def test_no_rollback_brings_back_what_a_guard_removed_at_any_weight(
    rollout: Registry,
) -> None:
    for weight in (1, 10):
        put = await rollout.put_traffic(
            DEFAULT_TENANT, TASK, Traffic(90, (Canary(B, weight),), guard=GUARD), "ann"
        )
        await rollout.set_alias(DEFAULT_TENANT, TASK, f"step-{weight}", A, "ann")
    await rollout.trip_guard(DEFAULT_TENANT, TASK, GuardReason.P99_MS, SEEN, put.revision)
    restored = [await rollout.rollback(DEFAULT_TENANT, TASK, "ann") for _ in range(2)]
    assert [state.traffic for state in restored] == [None, None]
    assert [sorted(state.aliases) for state in restored] == [["prod", "step-1"], ["prod"]]
    with pytest.raises(NothingToRollBack):
        await rollout.rollback(DEFAULT_TENANT, TASK, "ann")


async def test_traffic_changes_only_on_what_the_caller_saw(rollout: Registry) -> None:
    with pytest.raises(StaleRevision):
        await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann", if_match=2)
    put = await rollout.put_traffic(DEFAULT_TENANT, TASK, CANARY, "ann", if_match=3)
    with pytest.raises(StaleRevision):
        await rollout.clear_traffic(DEFAULT_TENANT, TASK, "ann", if_match=3)
    await rollout.clear_traffic(DEFAULT_TENANT, TASK, "ann", if_match=put.revision)


@pytest.mark.parametrize(
    ("drop", "outcomes", "is_broken"),
    [(0.11, 100, True), (0.1, 100, False), (-0.5, 100, False), (0.9, 99, False), (None, 0, False)],
)
def test_a_guard_judges_by_outcomes_once_there_are_enough(drop, outcomes, is_broken):
    """Without a single request in the window: outcomes come hours later."""
    guard = Guard(max_hit_drop=0.1, min_requests=100)
    observed = Observed(B, 0, 0, 0.0, None, drop, outcomes)
    assert (guard.broken_by(observed) is GuardReason.HIT_DROP) is is_broken
