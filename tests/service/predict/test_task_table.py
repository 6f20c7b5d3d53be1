"""The worker's mirror of what is served."""

import asyncio

import pytest
from msgspec.structs import replace

from peterrec.patches.errors import AliasNotFound, TaskNotFound
from peterrec.patches.identity import Digest, TaskId, TaskRef, TenantId
from peterrec.patches.registry.records import ActiveTraffic, TaskEntry
from peterrec.patches.registry.traffic import Canary, Guard, Traffic
from peterrec.service.errors import (
    BundleNotReady,
    BundleUnservable,
    DeviceUnavailable,
    TaskNotActive,
    VersionNotServed,
)
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.messages import RefusedBundle
from tests.service.messages import DIGEST_A, DIGEST_B, bundle_entry, full_update, update

ACME = TenantId("acme")
FILMS = TaskRef(ACME, TaskId("films"))


def films(digest: Digest = DIGEST_A, version: int = 1) -> TaskEntry:
    return TaskEntry.of(FILMS, version, {"prod": version}, {version: digest})


def loading_films() -> TaskEntry:
    return TaskEntry.of(FILMS, 2, {}, {1: DIGEST_B}, missing={"prod": 1})


@pytest.fixture
def table() -> TaskTable:
    table = TaskTable()
    table.apply(full_update(epoch=1, bundles=[bundle_entry(7, DIGEST_A)], tasks=[films()]))
    return table


def test_a_task_resolves_to_its_prod_version(table):
    served = table.resolve(ACME, "films")
    assert (served.version, served.alias, served.bundle.handle) == (1, "prod", 7)
    assert served.digest == f"sha256:{DIGEST_A}"


def test_an_unknown_task_is_not_found_even_if_another_tenant_has_it(table):
    with pytest.raises(TaskNotFound):
        table.resolve(ACME, "gender")
    with pytest.raises(TaskNotFound):
        table.resolve(TenantId("rival"), "films")


def test_a_task_without_prod_is_not_active(table):
    table.apply(update(2, tasks=[TaskEntry.of(FILMS, 2, {"canary": 1}, {1: DIGEST_A})]))
    with pytest.raises(TaskNotActive):
        table.resolve(ACME, "films")


def test_a_task_whose_prod_still_loads_is_not_ready_rather_than_not_active(table):
    table.apply(update(2, tasks=[loading_films()]))
    with pytest.raises(BundleNotReady):
        table.resolve(ACME, "films")
    with pytest.raises(BundleNotReady):
        table.resolve(ACME, "films", "prod")


def test_a_task_without_prod_is_not_active_while_another_alias_loads(table):
    entry = TaskEntry.of(FILMS, 2, {}, {1: DIGEST_B}, missing={"next": 1})
    table.apply(update(2, tasks=[entry]))
    with pytest.raises(TaskNotActive):
        table.resolve(ACME, "films")


def test_a_bundle_that_this_server_refuses_is_no_reason_to_try_again(table):
    refused = RefusedBundle(DIGEST_B, "backbone_mismatch: it is for 9c02")
    table.apply(replace(update(2, tasks=[loading_films()]), refused=[refused]))
    for version in (None, "prod", 1):
        with pytest.raises(BundleUnservable, match="backbone_mismatch") as raised:
            table.resolve(ACME, "films", version)
        assert not raised.value.is_retryable


def test_a_bundle_that_is_not_refused_any_more_is_loading_again(table):
    refused = RefusedBundle(DIGEST_B, "backbone_mismatch: it is for 9c02")
    table.apply(replace(update(2, tasks=[loading_films()]), refused=[refused]))
    table.apply(replace(update(3), refused=[]))
    with pytest.raises(BundleNotReady):
        table.resolve(ACME, "films")


def test_before_the_device_has_told_anything_no_task_is_unknown():
    with pytest.raises(DeviceUnavailable):
        TaskTable().resolve(ACME, "films")


def test_a_version_that_is_not_resident_is_not_ready(table):
    table.apply(update(2, tasks=[films(DIGEST_B, 2)]))
    with pytest.raises(BundleNotReady):
        table.resolve(ACME, "films")


def test_a_swap_replaces_version_and_handle_together(table):
    table.apply(
        update(
            2, bundles=[bundle_entry(8, DIGEST_B)], tasks=[films(DIGEST_B, 2)], removed=[DIGEST_A]
        )
    )
    served = table.resolve(ACME, "films")
    assert (served.version, served.bundle.handle, served.bundle.digest) == (2, 8, DIGEST_B)
    assert table.resident(DIGEST_A) is None


def test_a_bundle_that_comes_back_goes_by_its_new_handle(table):
    table.apply(update(2, removed=[DIGEST_A]))
    with pytest.raises(BundleNotReady):
        table.resolve(ACME, "films")
    table.apply(update(3, bundles=[bundle_entry(9, DIGEST_A)]))
    assert table.resolve(ACME, "films").bundle.handle == 9


def test_a_removed_task_is_gone(table):
    table.apply(update(2, removed_tasks=[FILMS]))
    assert table.entry("acme", "films") is None
    assert [*table.entries("acme")] == []


def test_a_full_update_replaces_everything(table):
    table.apply(full_update(epoch=2, bundles=[bundle_entry(1, DIGEST_B)], tasks=[]))
    assert table.entry("acme", "films") is None
    assert table.resident(DIGEST_A) is None
    assert (table.epoch, table.version, table.revision) == (2, 1, 1)


def test_a_tenants_tasks_are_listed_by_name(table):
    other = TaskEntry.of(TaskRef(ACME, TaskId("age")), 1, {}, {})
    foreign = TaskEntry.of(TaskRef(TenantId("rival"), TaskId("b")), 1, {}, {})
    table.apply(update(2, tasks=[other, foreign]))
    assert [entry.task for entry in table.entries("acme")] == ["age", "films"]


def with_traffic(traffic: Traffic, revision: int = 3) -> TaskEntry:
    versions = {1: DIGEST_A, 2: DIGEST_B}
    active = ActiveTraffic(traffic, {Digest(DIGEST_B): 2}, revision)
    return TaskEntry.of(FILMS, revision, {"prod": 1, "next": 2}, versions, active)


CANARY = Canary(Digest(DIGEST_B), 1)


@pytest.fixture
def split_table() -> TaskTable:
    table = TaskTable()
    bundles = [bundle_entry(7, DIGEST_A), bundle_entry(8, DIGEST_B)]
    entry = with_traffic(Traffic(1, (CANARY,)))
    table.apply(full_update(epoch=1, bundles=bundles, tasks=[entry]))
    return table


@pytest.mark.parametrize(
    ("wanted", "handle", "alias"),
    [
        (1, 7, None),
        ("2", 8, None),
        ("next", 8, "next"),
        (DIGEST_B, 8, None),
        (f"sha256:{DIGEST_A}", 7, None),
    ],
)
def test_a_version_is_pinned_by_number_digest_or_alias(split_table, wanted, handle, alias):
    served = split_table.resolve(ACME, "films", wanted)
    assert (served.bundle.handle, served.alias, served.role) == (handle, alias, "pinned")
    assert served.split is None


def test_a_pin_that_is_not_served_is_told_what_is(split_table):
    for wanted in (3, "sha256:" + "c" * 64):
        with pytest.raises(VersionNotServed, match=r"1 \(prod\), 2 \(next\)"):
            split_table.resolve(ACME, "films", wanted)
    with pytest.raises(AliasNotFound):
        split_table.resolve(ACME, "films", "unheard-of")


def test_a_canary_answers_alone_unless_its_answers_are_compared(split_table):
    def route(traffic: Traffic, revision: int):
        split_table.apply(update(revision, tasks=[with_traffic(traffic, revision)]))
        prod = split_table.resolve(ACME, "films")
        assert prod.split is not None
        return prod.split.route(prod, b"anybody")

    alone = route(Traffic(0, (CANARY,)), 4)
    assert (alone.answering.role, alone.shadowing) == ("canary", ())
    compared = route(Traffic(0, (CANARY,), guard=Guard(max_divergence=0.1)), 5)
    assert [each.role for each in compared.shadowing] == ["prod"]
    both = route(Traffic(0, (CANARY,), (Digest(DIGEST_B),)), 6)
    assert [each.role for each in both.shadowing] == ["prod"]
    shadowed = route(Traffic(1, (), (Digest(DIGEST_B),)), 7)
    assert (shadowed.answering.role, [s.role for s in shadowed.shadowing]) == ("prod", ["shadow"])


def test_a_canary_that_is_not_there_does_not_keep_prod_from_answering(split_table):
    split_table.apply(update(4, removed=[DIGEST_B]))
    served = split_table.resolve(ACME, "films")
    assert (served.bundle.handle, served.split) == (7, None)


def test_a_tasks_split_is_made_once_a_table(split_table):
    first, second = (split_table.resolve(ACME, "films").split for _ in range(2))
    assert first is second
    split_table.apply(update(9))
    assert split_table.resolve(ACME, "films").split is not first


async def test_waiting_for_the_next_table_ends_with_it_or_in_time(table):
    assert not await table.turn(0.01)
    turning = asyncio.create_task(table.turn(10))
    await asyncio.sleep(0)
    table.apply(update(2))
    assert await turning


def test_a_task_holds_its_digest_as_its_bundle_does(table):
    bundle = bundle_entry(8, Digest("".join(["b"] * 64)))
    table.apply(update(2, bundles=[bundle], tasks=[films(Digest("".join(["b"] * 64)), 2)]))
    assert table.entry(ACME, "films").packed is table.resident(bundle.digest).digest
