"""Several backbones on one device: each row runs by its own, and limits hold for all together."""

from collections.abc import Sequence

import numpy as np
import pytest

from peterrec.model.errors import PeterRecError
from peterrec.model.inference.steps import finish
from peterrec.model.spec import BackboneSpec
from peterrec.patches.bundle.verify import BundleLimits, VerifiedBundle, verify_bundle
from peterrec.patches.errors import BundleRejected
from peterrec.service.device.slots import LocalBundle, Residency, SlotStore
from peterrec.service.device.stores import SlotStores
from peterrec.service.errors import PatchBudgetExceeded
from peterrec.service.protocol.messages import PLAIN, VECTOR, Row, plain
from tests.service.random_bundles import ITEMS, Workshop

NARROW = BackboneSpec(item_count=200, channels=8, dilations=(1, 2), max_len=12)


@pytest.fixture(scope="module")
def workshops(tmp_path_factory: pytest.TempPathFactory) -> list[Workshop]:
    folder = tmp_path_factory.mktemp("backbones")
    return [Workshop(folder / "old"), Workshop(folder / "new", NARROW, ITEMS[::-1])]


def make_stores(workshops: Sequence[Workshop], patch_limit: int = 1 << 30) -> SlotStores:
    made: dict[str, SlotStore] = {}
    records = None
    for each in workshops:
        store = SlotStore(
            each.loaded.backbone, 1 << 20, patch_limit_bytes=patch_limit, records=records
        )
        records = store.records
        made[each.loaded.fingerprint] = store
    return SlotStores(made)


def verified(workshops: Sequence[Workshop], of: int, seed: int) -> LocalBundle:
    first, *others = [each.identity for each in workshops]
    data = workshops[of].bundle("tags", seed)
    limits = BundleLimits()
    return LocalBundle(verify_bundle(data, backbone=first, limits=limits, others=others))


def loaded(stores: SlotStores, bundles: Sequence[LocalBundle]) -> list[Residency]:
    found = finish(stores.load_steps(bundles))
    residencies = [each for each in found if isinstance(each, Residency)]
    assert len(residencies) == len(bundles), found
    return residencies


def tokens(*items: int) -> bytes:
    return np.array(items, np.int32).tobytes()


def test_rows_of_all_backbones_in_one_batch_are_scored_as_alone(workshops: list[Workshop]) -> None:
    stores = make_stores(workshops)
    bundles = [verified(workshops, of, seed) for of, seed in ((1, 1), (0, 2), (1, 3), (0, 4))]
    residencies = loaded(stores, bundles)
    assert [each.backbone for each in residencies] == [1, 0, 1, 0]
    rows = [Row(each.handle, tokens(*range(4, 14))) for each in residencies]
    rows += [Row(plain(of), tokens(5, 6), VECTOR) for of in (1, 0)]
    together = stores.score(rows)
    assert [len(each.values) for each in together[-2:]] == [8, 16]
    for row, found in zip(rows, together, strict=True):
        (alone,) = stores.score([row])
        np.testing.assert_allclose(found.values, alone.values, rtol=1e-5, atol=1e-6)


def test_handles_are_never_the_same_and_know_their_backbone(workshops: list[Workshop]) -> None:
    stores = make_stores(workshops)
    one, other = loaded(stores, [verified(workshops, 0, 1), verified(workshops, 1, 1)])
    assert one.handle != other.handle
    assert stores.holds(PLAIN)
    assert stores.holds(plain(1))
    assert not stores.holds(plain(2))
    stores.free(one)
    assert not stores.holds(one.handle)
    assert stores.holds(other.handle)
    assert [each.bundles for each in stores.memory()] == [0, 1]
    assert stores.patch_bytes == stores.memory()[1].patch_bytes > 0


def test_the_limit_of_patches_holds_for_all_backbones_together(workshops: list[Workshop]) -> None:
    (first,) = loaded(make_stores(workshops), [verified(workshops, 0, 1)])
    room = first.form.patches.slot_bytes
    stores = make_stores(workshops, patch_limit=room)
    (kept,) = loaded(stores, [verified(workshops, 0, 1)])
    (refused,) = finish(stores.load_steps([verified(workshops, 1, 1)]))
    assert isinstance(refused, PatchBudgetExceeded)
    stores.free(kept)
    assert stores.patch_bytes == 0


def test_nothing_is_left_of_any_backbone_if_the_device_fails(workshops: list[Workshop]) -> None:
    stores = make_stores(workshops)
    bundles = [verified(workshops, 0, 1), verified(workshops, 1, 1)]
    steps = stores.load_steps(bundles)
    while not stores.resident:
        next(steps)
    steps.close()
    assert not stores.resident
    assert stores.patch_bytes == 0
    assert loaded(stores, bundles)


def test_work_is_counted_by_what_a_position_costs(workshops: list[Workshop]) -> None:
    stores = make_stores(workshops)
    row = Row(PLAIN, tokens(4, 5, 6), VECTOR)
    old, new = (stores.price_of_plain(plain(of)).work(row) for of in (0, 1))
    assert new / old == pytest.approx(8**2 / 16**2)


def test_a_bundle_of_no_backbone_here_is_refused(
    workshops: list[Workshop], tmp_path_factory: pytest.TempPathFactory
) -> None:
    foreign = Workshop(tmp_path_factory.mktemp("foreign"), items=[f"x-{item}" for item in ITEMS])

    def verify() -> VerifiedBundle | PeterRecError:
        return verify_bundle(
            foreign.bundle("tags", 1),
            backbone=workshops[0].identity,
            limits=BundleLimits(),
            others=[workshops[1].identity],
        )

    with pytest.raises(BundleRejected) as refused:
        verify()
    (reason,) = refused.value.reasons
    assert all(each.loaded.fingerprint in reason.message for each in workshops)
