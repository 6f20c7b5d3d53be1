"""The table names only what is resident, and frees only what nobody can ask for."""

from dataclasses import replace

import pytest

from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.patches.identity import Digest, TaskId, TaskRef, TenantId
from peterrec.patches.registry.records import ActiveTraffic, TaskEntry
from peterrec.patches.registry.traffic import Canary, Traffic
from peterrec.service.device.serving_table import (
    SILENT_AFTER_S,
    UNFIT_NAMED,
    DesiredState,
    ServingTable,
)
from peterrec.service.device.slots import Residency, SlotStore
from peterrec.service.protocol.messages import ProdBundles, RefusedBundle, UnfitBundle
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


def desired(revision: int, **tasks: Residency) -> DesiredState:
    entries = {
        task(name): TaskEntry.of(
            task(name), revision, {"prod": revision}, {revision: residency.digest}
        )
        for name, residency in tasks.items()
    }
    return DesiredState(revision, entries)


class Table(ServingTable):
    """A table and the bundles on its device: the first three of four."""

    def __init__(self, residencies: list[Residency]) -> None:
        self.residents: dict[Digest, Residency] = {}
        super().__init__(1, self.residents)
        for residency in residencies[:3]:
            self.load(residency)

    def load(self, residency: Residency) -> None:
        self.residents[residency.digest] = residency
        self.add(residency.digest)


@pytest.fixture
def table(residencies: list[Residency]) -> Table:
    return Table(residencies)


def refusing(state: DesiredState, *refused: Residency) -> DesiredState:
    bundles = [RefusedBundle(each.digest, "m: x", ["m"]) for each in refused]
    return replace(state, refused=bundles)


def nobody_waits() -> set[int]:
    return set()


def test_an_update_announces_a_residency_with_the_first_task_that_names_it(
    table: Table, residencies: list[Residency]
) -> None:
    update = table.reconcile(desired(1, gender=residencies[0]))
    assert [entry.handle for entry in update.bundles] == [residencies[0].handle]
    again = table.reconcile(desired(2, gender=residencies[0], age=residencies[0]))
    assert again.bundles == []
    assert [entry.task for entry in again.tasks] == ["gender", "age"]


def test_a_version_that_is_not_resident_leaves_the_old_one_serving(
    table: Table, residencies: list[Residency]
) -> None:
    table.reconcile(desired(1, gender=residencies[0]))
    wanted = desired(2, gender=residencies[3])
    update = table.reconcile(wanted)
    assert update.tasks[0].aliases == {"prod": 1}
    assert update.tasks[0].versions[1] == residencies[0].digest
    assert table.missing() == [residencies[3].digest]


def test_a_task_without_any_resident_version_is_known_but_not_active(
    table: Table, residencies: list[Residency]
) -> None:
    update = table.reconcile(desired(1, gender=residencies[3]))
    assert update.tasks[0].aliases == {}


def test_a_removed_task_is_named_and_its_residency_retired(
    table: Table, residencies: list[Residency]
) -> None:
    table.reconcile(desired(1, gender=residencies[0], age=residencies[1]))
    update = table.reconcile(desired(2, age=residencies[1]))
    assert update.removed_tasks == [("acme", "gender")]
    assert update.removed_bundles == [residencies[0].digest]


def test_nothing_is_freed_before_every_worker_has_the_table_that_dropped_it(
    table: Table, residencies: list[Residency]
) -> None:
    first, second = table.hear(1, 0.0), table.hear(2, 0.0)
    table.reconcile(desired(1, gender=residencies[0]))
    table.reconcile(desired(2, gender=residencies[1]))
    first.acked_version = 2
    assert residencies[0] not in table.take_idle(nobody_waits, keep=0)
    second.acked_version = 2
    assert residencies[0] in table.take_idle(nobody_waits, keep=0)


def test_nothing_is_freed_while_a_row_waits_for_it(
    table: Table, residencies: list[Residency]
) -> None:
    table.reconcile(desired(1, gender=residencies[0]))
    table.reconcile(desired(2, gender=residencies[1]))
    waiting = {residencies[0].handle}
    assert residencies[0] not in table.take_idle(lambda: waiting, keep=0)
    waiting.clear()
    assert residencies[0] in table.take_idle(lambda: waiting, keep=0)


def test_a_residency_named_again_is_not_idle_any_more(
    table: Table, residencies: list[Residency]
) -> None:
    table.reconcile(desired(1, gender=residencies[0]))
    table.reconcile(desired(2, gender=residencies[1]))
    update = table.reconcile(desired(3, gender=residencies[0]))
    assert [entry.handle for entry in update.bundles] == [residencies[0].handle]
    assert residencies[0] not in table.take_idle(nobody_waits, keep=0)


def test_a_silent_worker_is_no_longer_waited_for(table: Table) -> None:
    table.hear(1, 0.0)
    alive = table.hear(2, SILENT_AFTER_S + 1)
    alive.acked_version = 5
    assert not table.is_acknowledged(5)
    table.forget_silent(SILENT_AFTER_S + 1)
    assert table.is_acknowledged(5)


def test_a_task_that_did_not_change_is_neither_sent_again_nor_looked_at(
    table: Table, residencies: list[Residency]
) -> None:
    first = desired(1, gender=residencies[0], age=residencies[1])
    table.reconcile(first)
    moved = desired(2, age=residencies[2])
    update = table.reconcile(DesiredState(2, {**first.tasks, **moved.tasks}))
    assert [entry.task for entry in update.tasks] == ["age"]
    assert update.removed_bundles == [residencies[1].digest]


def test_a_pending_task_is_served_once_its_bundle_is_there(
    table: Table, residencies: list[Residency]
) -> None:
    wanted = desired(1, gender=residencies[3])
    table.reconcile(wanted)
    table.load(residencies[3])
    update = table.reconcile(wanted)
    assert update.tasks[0].aliases == {"prod": 1}
    assert table.missing() == []


def test_a_digest_that_two_tasks_name_is_retired_with_the_last_of_them(
    table: Table, residencies: list[Residency]
) -> None:
    table.reconcile(desired(1, gender=residencies[0], age=residencies[0]))
    assert table.reconcile(desired(2, gender=residencies[0])).removed_bundles == []
    assert table.reconcile(desired(3)).removed_bundles == [residencies[0].digest]


def split_task(
    revision: int, prod: Residency, canary: Residency, *, put_at: int = 1
) -> DesiredState:
    active = ActiveTraffic(Traffic(1, (Canary(canary.digest, 1),)), {canary.digest: 2}, put_at)
    versions = {1: prod.digest, 2: canary.digest}
    entry = TaskEntry.of(task("gender"), revision, {"prod": 1}, versions, active)
    return DesiredState(revision, {entry.ref: entry})


def test_a_canary_is_announced_with_the_traffic_that_names_it_and_retired_with_it(
    table: Table, residencies: list[Residency]
) -> None:
    update = table.reconcile(split_task(1, *residencies[:2]))
    assert {entry.handle for entry in update.bundles} == {r.handle for r in residencies[:2]}
    update = table.reconcile(desired(2, gender=residencies[0]))
    assert update.removed_bundles == [residencies[1].digest]


def test_prod_answers_alone_until_the_whole_traffic_is_resident(
    table: Table, residencies: list[Residency]
) -> None:
    wanted = split_task(1, residencies[0], residencies[3])
    update = table.reconcile(wanted)
    assert (update.tasks[0].aliases, update.tasks[0].traffic) == ({"prod": 1}, None)
    assert table.missing() == [residencies[3].digest]
    table.load(residencies[3])
    assert table.reconcile(wanted).tasks[0].traffic is not None


def test_traffic_that_was_withdrawn_stays_away_until_other_traffic_is_put(
    table: Table, residencies: list[Residency]
) -> None:
    table.reconcile(split_task(1, *residencies[:2]))
    assert table.withdraw(task("gender"), 99) is None
    assert table.withdraw(task("age"), 1) is None
    update = table.withdraw(task("gender"), 1)
    assert update is not None
    assert update.tasks[0].traffic is None
    assert update.removed_bundles == [residencies[1].digest]
    assert table.reconcile(split_task(2, *residencies[:2])).tasks[0].traffic is None
    again = table.reconcile(split_task(3, *residencies[:2], put_at=3))
    assert again.tasks[0].traffic is not None


def test_of_a_change_that_names_what_it_touched_only_that_is_looked_at(
    table: Table, residencies: list[Residency]
) -> None:
    table.reconcile(desired(1, gender=residencies[0], age=residencies[1]))
    both = desired(2, gender=residencies[2], age=residencies[2])
    change = DesiredState(2, both.tasks, touched=frozenset({task("age")}))
    assert [entry.task for entry in table.reconcile(change).tasks] == ["age"]


def test_a_change_that_names_what_it_touched_also_serves_pending_tasks(
    table: Table, residencies: list[Residency]
) -> None:
    table.reconcile(desired(1, gender=residencies[3], age=residencies[1]))
    table.load(residencies[3])
    left = desired(1, gender=residencies[3])
    update = table.reconcile(DesiredState(2, left.tasks, touched=frozenset({task("age")})))
    assert [entry.handle for entry in update.bundles] == [residencies[3].handle]
    assert update.removed_tasks == [task("age")]


def test_what_is_to_be_forgotten_is_freed_although_there_is_room_for_idle_bundles(
    table: Table, residencies: list[Residency]
) -> None:
    table.reconcile(desired(1, gender=residencies[0], age=residencies[1]))
    table.reconcile(desired(2, age=residencies[1]))
    table.forget_idle()
    assert table.is_forgetting
    freed = table.take_idle(lambda: {residencies[0].handle}, keep=16)
    assert freed == [residencies[2]]  # a row still waits for the first one
    assert table.take_idle(nobody_waits, keep=16) == [residencies[0]]
    assert not table.is_forgetting


def test_a_bundle_that_a_task_names_again_is_not_forgotten(
    table: Table, residencies: list[Residency]
) -> None:
    table.forget_idle()
    table.reconcile(desired(1, gender=residencies[0]))
    table.reconcile(desired(2))
    assert residencies[0] not in table.take_idle(nobody_waits, keep=16)
    assert not table.is_forgetting


def test_tasks_that_nothing_answers_are_counted_and_the_refused_ones_named(
    table: Table, residencies: list[Residency]
) -> None:
    foreign = residencies[3]
    table.reconcile(desired(1, gender=residencies[0], age=foreign))
    assert table.prod == ProdBundles(2, 1)  # it may still come
    table.reconcile(refusing(desired(2, gender=residencies[0], age=foreign), foreign))
    unfit = UnfitBundle("acme", "age", 2, foreign.digest, ["m"])
    assert table.prod == ProdBundles(2, 1, 1, [unfit])
    table.reconcile(refusing(desired(3, gender=foreign, age=foreign), foreign))
    assert (table.prod.answering, table.prod.unfit) == (1, 1)  # the version before answers
    table.reconcile(refusing(desired(4, age=foreign), foreign))
    assert (table.prod.registered, table.prod.answering, table.prod.unfit) == (1, 0, 1)
    table.reconcile(desired(5, age=residencies[1]))
    assert table.prod == ProdBundles(1, 1)
    table.reconcile(desired(6))
    assert table.prod == ProdBundles()


def test_of_many_refused_bundles_the_first_few_are_named(
    table: Table, residencies: list[Residency]
) -> None:
    names = [f"task{number:02}" for number in range(UNFIT_NAMED + 5)]
    wanted = desired(1, **dict.fromkeys(names, residencies[3]))
    table.reconcile(refusing(wanted, residencies[3]))
    assert table.prod.unfit == len(names)
    assert [each.task for each in table.prod.some] == names[:UNFIT_NAMED]
