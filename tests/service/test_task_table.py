"""The worker's mirror of what is served."""

import pytest

from patches.errors import TaskNotFound
from patches.identity import TenantId
from service.errors import BundleNotReady, TaskNotActive
from service.messages import TaskEntry
from service.task_table import TaskTable
from tests.service.messages import DIGEST_A, DIGEST_B, bundle_entry, full_update, update

ACME = TenantId("acme")


def films(digest: str = DIGEST_A, version: int = 1) -> TaskEntry:
    return TaskEntry("acme", "films", version, {"prod": version}, {version: digest})


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
    table.apply(update(2, tasks=[TaskEntry("acme", "films", 2, {"canary": 1}, {1: DIGEST_A})]))
    with pytest.raises(TaskNotActive):
        table.resolve(ACME, "films")


def test_a_version_that_is_not_resident_is_not_ready(table):
    table.apply(update(2, tasks=[films(DIGEST_B, 2)]))
    with pytest.raises(BundleNotReady):
        table.resolve(ACME, "films")


def test_a_swap_replaces_version_and_handle_together(table):
    table.apply(
        update(2, bundles=[bundle_entry(8, DIGEST_B)], tasks=[films(DIGEST_B, 2)], removed=[7])
    )
    served = table.resolve(ACME, "films")
    assert (served.version, served.bundle.handle, served.bundle.digest) == (2, 8, DIGEST_B)
    assert table.resident(DIGEST_A) is None


def test_a_bundle_that_comes_back_under_a_new_handle_outlives_the_old_handles_removal(table):
    table.apply(update(2, bundles=[bundle_entry(9, DIGEST_A)]))
    table.apply(update(3, removed=[7]))
    assert table.resolve(ACME, "films").bundle.handle == 9


def test_a_removed_task_is_gone(table):
    table.apply(update(2, removed_tasks=[("acme", "films")]))
    assert table.entry("acme", "films") is None
    assert [*table.entries("acme")] == []


def test_a_full_update_replaces_everything(table):
    table.apply(full_update(epoch=2, bundles=[bundle_entry(1, DIGEST_B)], tasks=[]))
    assert table.entry("acme", "films") is None
    assert table.resident(DIGEST_A) is None
    assert (table.epoch, table.version, table.revision) == (2, 1, 1)


def test_a_tenants_tasks_are_listed_by_name(table):
    other = TaskEntry("acme", "age", 1, {}, {})
    foreign = TaskEntry("rival", "b", 1, {}, {})
    table.apply(update(2, tasks=[other, foreign]))
    assert [entry.task for entry in table.entries("acme")] == ["age", "films"]
