"""The table names only what is resident, and frees only what nobody can ask for."""

import pytest

from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.patches.identity import TaskId, TaskRef, TenantId
from peterrec.patches.registry.records import ActiveTraffic, TaskEntry
from peterrec.patches.registry.traffic import Canary, Traffic
from peterrec.service.device.serving_table import SILENT_AFTER_S, Desired, ServingTable
from peterrec.service.device.slots import Residency, SlotStore
from tests.service.random_bundles import Workshop


@pytest.fixture(scope="module")
def residencies(tmp_path_factory: pytest.TempPathFactory) -> list[Residency]:
    workshop = Workshop(tmp_path_factory.mktemp("backbone"))
    store = SlotStore(workshop.loaded.backbone, head_limit_bytes=1 << 20)
    bundles = [workshop.bundle("classification", seed) for seed in range(4)]
    return [
        store.load(verify_bundle(data, backbone=workshop.identity, limits=BundleLimits()))
        for data in bundles
    ]


def task(name: str) -> TaskRef:
    return TaskRef(TenantId("acme"), TaskId(name))


def desired(revision: int, **tasks: Residency) -> Desired:
    entries = {
        task(name): TaskEntry.of(
            task(name), revision, {"prod": revision}, {revision: residency.digest}
        )
        for name, residency in tasks.items()
    }
    return Desired(revision, entries)


@pytest.fixture
def table(residencies: list[Residency]) -> ServingTable:
    table = ServingTable(epoch=1)
    for residency in residencies[:3]:
        table.admit(residency)
    return table


def nobody_waits(handle: int) -> bool:
    return False


def test_an_update_announces_a_residency_with_the_first_task_that_names_it(
    table: ServingTable, residencies: list[Residency]
) -> None:
    update = table.apply(desired(1, gender=residencies[0]))
    assert [entry.handle for entry in update.bundles] == [residencies[0].handle]
    again = table.apply(desired(2, gender=residencies[0], age=residencies[0]))
    assert again.bundles == []
    assert [entry.task for entry in again.tasks] == ["gender", "age"]


def test_a_version_that_is_not_resident_leaves_the_old_one_serving(
    table: ServingTable, residencies: list[Residency]
) -> None:
    table.apply(desired(1, gender=residencies[0]))
    wanted = desired(2, gender=residencies[3])
    update = table.apply(wanted)
    assert update.tasks[0].aliases == {"prod": 1}
    assert update.tasks[0].versions[1] == residencies[0].digest
    assert table.missing() == [residencies[3].digest]


def test_a_task_without_any_resident_version_is_known_but_not_active(
    table: ServingTable, residencies: list[Residency]
) -> None:
    update = table.apply(desired(1, gender=residencies[3]))
    assert update.tasks[0].aliases == {}


def test_a_removed_task_is_named_and_its_residency_retired(
    table: ServingTable, residencies: list[Residency]
) -> None:
    table.apply(desired(1, gender=residencies[0], age=residencies[1]))
    update = table.apply(desired(2, age=residencies[1]))
    assert update.removed_tasks == [("acme", "gender")]
    assert update.removed_bundles == [residencies[0].digest]


def test_nothing_is_freed_before_every_worker_has_the_table_that_dropped_it(
    table: ServingTable, residencies: list[Residency]
) -> None:
    first, second = table.hear(b"one", 0.0), table.hear(b"two", 0.0)
    table.apply(desired(1, gender=residencies[0]))
    table.apply(desired(2, gender=residencies[1]))
    first.acked_version = 2
    assert residencies[0] not in table.take_idle(nobody_waits, keep=0)
    second.acked_version = 2
    assert residencies[0] in table.take_idle(nobody_waits, keep=0)


def test_nothing_is_freed_while_a_row_waits_for_it(
    table: ServingTable, residencies: list[Residency]
) -> None:
    table.apply(desired(1, gender=residencies[0]))
    table.apply(desired(2, gender=residencies[1]))
    waiting = {residencies[0].handle}
    assert residencies[0] not in table.take_idle(waiting.__contains__, keep=0)
    waiting.clear()
    assert residencies[0] in table.take_idle(waiting.__contains__, keep=0)


def test_a_residency_named_again_is_not_idle_any_more(
    table: ServingTable, residencies: list[Residency]
) -> None:
    table.apply(desired(1, gender=residencies[0]))
    table.apply(desired(2, gender=residencies[1]))
    update = table.apply(desired(3, gender=residencies[0]))
    assert [entry.handle for entry in update.bundles] == [residencies[0].handle]
    assert residencies[0] not in table.take_idle(nobody_waits, keep=0)


def test_a_silent_worker_is_no_longer_waited_for(table: ServingTable) -> None:
    table.hear(b"dead", 0.0)
    alive = table.hear(b"alive", SILENT_AFTER_S + 1)
    alive.acked_version = 5
    assert not table.is_acknowledged(5)
    table.forget_silent(SILENT_AFTER_S + 1)
    assert table.is_acknowledged(5)


def test_a_task_that_did_not_change_is_neither_sent_again_nor_looked_at(
    table: ServingTable, residencies: list[Residency]
) -> None:
    first = desired(1, gender=residencies[0], age=residencies[1])
    table.apply(first)
    moved = desired(2, age=residencies[2])
    update = table.apply(Desired(2, {**first.tasks, **moved.tasks}))
    assert [entry.task for entry in update.tasks] == ["age"]
    assert update.removed_bundles == [residencies[1].digest]


def test_a_lagging_task_is_served_once_its_bundle_is_there(
    table: ServingTable, residencies: list[Residency]
) -> None:
    wanted = desired(1, gender=residencies[3])
    table.apply(wanted)
    table.admit(residencies[3])
    update = table.apply(wanted)
    assert update.tasks[0].aliases == {"prod": 1}
    assert table.missing() == []


def test_a_digest_that_two_tasks_name_is_retired_with_the_last_of_them(
    table: ServingTable, residencies: list[Residency]
) -> None:
    table.apply(desired(1, gender=residencies[0], age=residencies[0]))
    assert table.apply(desired(2, gender=residencies[0])).removed_bundles == []
    assert table.apply(desired(3)).removed_bundles == [residencies[0].digest]


def split_task(revision: int, prod: Residency, canary: Residency, *, put_at: int = 1) -> Desired:
    active = ActiveTraffic(Traffic(1, (Canary(canary.digest, 1),)), {canary.digest: 2}, put_at)
    versions = {1: prod.digest, 2: canary.digest}
    entry = TaskEntry.of(task("gender"), revision, {"prod": 1}, versions, active)
    return Desired(revision, {entry.ref: entry})


def test_a_canary_is_announced_with_the_traffic_that_names_it_and_retired_with_it(
    table: ServingTable, residencies: list[Residency]
) -> None:
    update = table.apply(split_task(1, *residencies[:2]))
    assert {entry.handle for entry in update.bundles} == {r.handle for r in residencies[:2]}
    update = table.apply(desired(2, gender=residencies[0]))
    assert update.removed_bundles == [residencies[1].digest]


def test_prod_answers_alone_until_the_whole_traffic_is_resident(
    table: ServingTable, residencies: list[Residency]
) -> None:
    wanted = split_task(1, residencies[0], residencies[3])
    update = table.apply(wanted)
    assert (update.tasks[0].aliases, update.tasks[0].traffic) == ({"prod": 1}, None)
    assert table.missing() == [residencies[3].digest]
    table.admit(residencies[3])
    assert table.apply(wanted).tasks[0].traffic is not None


def test_traffic_that_was_withdrawn_stays_away_until_other_traffic_is_put(
    table: ServingTable, residencies: list[Residency]
) -> None:
    table.apply(split_task(1, *residencies[:2]))
    assert table.withdraw(task("gender"), 99) is None
    assert table.withdraw(task("age"), 1) is None
    update = table.withdraw(task("gender"), 1)
    assert update is not None
    assert update.tasks[0].traffic is None
    assert update.removed_bundles == [residencies[1].digest]
    assert table.apply(split_task(2, *residencies[:2])).tasks[0].traffic is None
    again = table.apply(split_task(3, *residencies[:2], put_at=3))
    assert again.tasks[0].traffic is not None


def test_of_a_change_that_names_what_it_touched_only_that_is_looked_at(
    table: ServingTable, residencies: list[Residency]
) -> None:
    table.apply(desired(1, gender=residencies[0], age=residencies[1]))
    both = desired(2, gender=residencies[2], age=residencies[2])
    told = Desired(2, both.tasks, touched=frozenset({task("age")}))
    assert [entry.task for entry in table.apply(told).tasks] == ["age"]


def test_a_change_that_names_what_it_touched_also_serves_lagging_tasks(
    table: ServingTable, residencies: list[Residency]
) -> None:
    table.apply(desired(1, gender=residencies[3], age=residencies[1]))
    table.admit(residencies[3])
    left = desired(1, gender=residencies[3])
    update = table.apply(Desired(2, left.tasks, touched=frozenset({task("age")})))
    assert [entry.handle for entry in update.bundles] == [residencies[3].handle]
    assert update.removed_tasks == [task("age")]
