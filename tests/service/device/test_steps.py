"""A bundle is loaded in steps: rows run between them, and nothing of it serves before its end."""

import numpy as np
import pytest

from peterrec.model.inference.steps import finish
from peterrec.model.spec import PatchGeometry, TableSpec
from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.service.device.slots import LocalBundle, Residency, SlotStore, weights_of
from peterrec.service.errors import PatchBudgetExceeded
from peterrec.service.protocol.messages import Row
from tests.service.random_bundles import Workshop

WIDE = PatchGeometry("serial2", 20_000, (0, 1))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def store(workshop: Workshop) -> SlotStore:
    return SlotStore(workshop.loaded.backbone, head_limit_bytes=1 << 24)


def local(workshop: Workshop, data: bytes) -> LocalBundle:
    limits = BundleLimits(max_patch_work=1e9)
    return LocalBundle(verify_bundle(data, backbone=workshop.identity, limits=limits))


@pytest.fixture(scope="module")
def large(workshop: Workshop) -> LocalBundle:
    """A bundle whose patch has five megabytes."""
    return local(workshop, workshop.bundle("classification", 1, geometry=WIDE))


@pytest.fixture
def loaded(store: SlotStore, workshop: Workshop) -> Row:
    """A row of a bundle that is on the device."""
    residency = store.load(local(workshop, workshop.bundle("tags", 2)).bundle)
    return Row(residency.handle, np.array([4, 5, 6], np.int32).tobytes())


def test_rows_of_other_bundles_run_between_the_steps_of_a_load(
    store: SlotStore, large: LocalBundle, loaded: Row
) -> None:
    (expected,) = store.score([loaded])
    count = 0
    steps = store.load_steps([large])
    for _ in steps:
        (found,) = store.score([loaded])
        assert found.values.tolist() == expected.values.tolist()
        assert large.bundle.digest not in store.by_digest
        count += 1
    assert count > 8  # five megabytes, a probe alone, the others, and the head
    assert large.bundle.digest in store.by_digest


@pytest.mark.parametrize("kind", ["classification", "tags", "ranking", "value"])
@pytest.mark.parametrize("table", [None, TableSpec(1)])
def test_weights_that_another_thread_prepared_give_the_same_answers(
    workshop: Workshop, store: SlotStore, kind: str, table: TableSpec | None
) -> None:
    bundle = local(workshop, workshop.bundle(kind, 3, table=table)).bundle
    plain = store.load(bundle)
    (prepared,) = finish(store.load_steps([LocalBundle(bundle, weights=weights_of(bundle))]))
    assert isinstance(prepared, Residency)
    tokens = np.array([4, 5, 6], np.int32).tobytes()
    first, second = store.score([Row(plain.handle, tokens, 3), Row(prepared.handle, tokens, 3)])
    assert first.values.tolist() == second.values.tolist()
    assert prepared.reach == plain.reach


def test_a_load_that_is_given_up_leaves_nothing(store: SlotStore, large: LocalBundle) -> None:
    steps = store.load_steps([large])
    for _ in range(3):
        next(steps)
    steps.close()
    assert (store.patch_bytes, store.head_bytes, store.resident) == (0, 0, {})
    assert finish(store.load_steps([large]))[0] is store.by_digest[large.bundle.digest]


def test_a_patch_beyond_the_limit_is_refused_and_fits_when_another_one_is_freed(
    workshop: Workshop,
) -> None:
    first, second = (local(workshop, workshop.bundle("value", seed)) for seed in (1, 2))
    slot_bytes = SlotStore(workshop.loaded.backbone, 1 << 20)
    slot_bytes.load(first.bundle)
    store = SlotStore(
        workshop.loaded.backbone, 1 << 20, patch_limit_bytes=slot_bytes.patch_bytes * 3 // 2
    )
    residency = store.load(first.bundle)
    with pytest.raises(PatchBudgetExceeded) as refused:
        store.load(second.bundle)
    assert refused.value.category.name == "NO_ROOM"
    assert store.patch_bytes == slot_bytes.patch_bytes
    store.free(residency)
    store.load(second.bundle)
