"""Bundles on their way into the table: a bad one, of any kind, is left out alone."""

from dataclasses import replace

import pytest

from peterrec.model.inference.steps import finish
from peterrec.model.spec import BackboneSpec
from peterrec.patches.bundle.bundle import build_bundle
from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.patches.identity import Digest, TaskId, TaskRef, TenantId
from peterrec.patches.registry.records import TaskEntry
from peterrec.service.device.load import Loading
from peterrec.service.device.serving_table import DesiredState, ServingTable
from peterrec.service.device.slots import LocalBundle, SlotStore
from peterrec.service.errors import HeadBudgetExceeded, LoadFailed, ProbeFailed
from tests.service.random_bundles import SPEC, Workshop

BUDGET = 1000


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("backbone"))


class Device:
    """A store, a table, and what leads from the one to the other."""

    def __init__(self, workshop: Workshop, head_limit_bytes: int = 1 << 20) -> None:
        self.store = SlotStore(workshop.loaded.backbone, head_limit_bytes)
        self.table = ServingTable(1, self.store.by_digest)
        self.loading = Loading(self.store, self.table, self.make_room)

    def make_room(self) -> None:
        for residency in self.table.take_idle(set, keep=0):
            self.store.free(residency)

    def serve(self, *digests: Digest) -> set[str]:
        """Make a table of what is loaded; the digests that it names."""
        self.loading.hand_over()
        names = enumerate(digests, start=1)
        tasks = {
            ref: TaskEntry.of(ref, number, {"prod": number}, {number: digest})
            for number, digest in names
            for ref in [TaskRef(TenantId("acme"), TaskId(digest))]
        }
        return {entry.digest for entry in self.table.reconcile(DesiredState(1, tasks)).bundles}


@pytest.fixture
def device(workshop: Workshop) -> Device:
    return Device(workshop)


def local(workshop: Workshop, data: bytes) -> LocalBundle:
    return LocalBundle(verify_bundle(data, backbone=workshop.identity, limits=BundleLimits()))


def good(workshop: Workshop, *seeds: int) -> list[LocalBundle]:
    return [local(workshop, workshop.bundle("classification", seed)) for seed in seeds]


def with_false_probes(workshop: Workshop) -> LocalBundle:
    honest = local(workshop, workshop.bundle("classification", 99)).bundle
    tensors = {**honest.tensors, "patch.down": honest.tensors["patch.down"] * 1.01}
    return local(workshop, build_bundle(honest.manifest, tensors))


@pytest.fixture(scope="module")
def breaking(tmp_path_factory: pytest.TempPathFactory) -> LocalBundle:
    """Verified for a larger vocabulary: its probes hold tokens that the device has no rows for."""
    spec: BackboneSpec = replace(SPEC, item_count=1000)
    items = [f"item-{number}" for number in range(1000)]
    larger = Workshop(tmp_path_factory.mktemp("larger"), spec, items)
    return local(larger, larger.bundle("classification", 1))


def digests(bundles: list[LocalBundle]) -> list[Digest]:
    return [each.bundle.digest for each in bundles]


def test_bundles_loaded_together_are_served_by_the_next_table(
    workshop: Workshop, device: Device
) -> None:
    bundles = good(workshop, 1, 2, 3)
    assert finish(device.loading.load(bundles)) == {}
    assert device.serve(*digests(bundles)) == set(digests(bundles))


def test_one_with_false_probes_is_refused_and_its_mates_are_loaded(
    workshop: Workshop, device: Device
) -> None:
    mates, bad = good(workshop, 1, 2), with_false_probes(workshop)
    failures = finish(device.loading.load([mates[0], bad, mates[1]]))
    assert [type(error) for error in failures.values()] == [ProbeFailed]
    assert failures.keys() == {bad.bundle.digest}
    assert device.serve(*digests(mates), bad.bundle.digest) == set(digests(mates))
    assert len(device.store.resident) == 2


def test_one_that_breaks_the_device_is_refused_and_its_mates_are_loaded(
    workshop: Workshop, device: Device, breaking: LocalBundle
) -> None:
    mates = good(workshop, 1, 2)
    failures = finish(device.loading.load([mates[0], breaking, mates[1]]))
    assert isinstance(failures[breaking.bundle.digest], LoadFailed)
    assert device.serve(*digests(mates)) == set(digests(mates))
    assert len(device.store.resident) == 2


def test_one_whose_head_finds_no_room_is_refused_and_its_mates_are_loaded(
    workshop: Workshop,
) -> None:
    device = Device(workshop, head_limit_bytes=BUDGET)
    large = local(workshop, workshop.bundle("ranking", 1, outputs=100))
    mates = good(workshop, 1, 2)
    failures = finish(device.loading.load([mates[0], large, mates[1]]))
    assert isinstance(failures[large.bundle.digest], HeadBudgetExceeded)
    assert device.serve(*digests(mates)) == set(digests(mates))


def test_idle_bundles_give_way_to_a_head_that_is_wanted(workshop: Workshop) -> None:
    device = Device(workshop, head_limit_bytes=BUDGET)
    idle, wanted = good(workshop, *range(1, 5)), good(workshop, *range(5, 9))
    for each in idle:
        finish(device.loading.validate(each))
    device.serve()
    assert finish(device.loading.load(wanted)) == {}
    assert device.serve(*digests(wanted)) == set(digests(wanted))


def test_what_is_loaded_is_not_freed_before_a_table_could_name_it(
    workshop: Workshop, device: Device
) -> None:
    bundles = good(workshop, 1, 2)
    finish(device.loading.load(bundles))
    device.make_room()
    assert device.serve(*digests(bundles)) == set(digests(bundles))


def test_a_bundle_that_is_here_is_not_loaded_again(workshop: Workshop, device: Device) -> None:
    bundles = good(workshop, 1)
    finish(device.loading.validate(bundles[0]))
    finish(device.loading.load(bundles))
    finish(device.loading.load(bundles))
    assert len(device.store.resident) == 1


def test_a_worker_that_asks_for_the_whole_table_gets_no_bundle_that_only_is_loaded(
    workshop: Workshop, device: Device
) -> None:
    served, loaded = good(workshop, 1), good(workshop, 2)
    finish(device.loading.load(served))
    device.serve(*digests(served))
    finish(device.loading.load(loaded))
    assert [entry.digest for entry in device.table.full().bundles] == digests(served)
