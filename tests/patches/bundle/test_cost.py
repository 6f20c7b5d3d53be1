"""What a bundle costs to run is known before it runs, and bounded."""

from dataclasses import replace

import pytest

from peterrec.model.spec import BackboneSpec, PatchGeometry
from peterrec.patches.bundle.cost import BundleCost
from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.patches.errors import BundleRejected, ReasonCode
from peterrec.patches.registry.records import VersionSummary
from tests.patches.bundles import LIMITS, TINY, BundleRecipe, make_parts

BACKBONE = BackboneSpec(item_count=10, channels=64, dilations=(1, 4, 1, 4), kernel_size=3)


def cost_of(bottleneck: int) -> BundleCost:
    geometry = PatchGeometry("serial2", bottleneck, (0, 1, 2, 3))
    manifest = make_parts(BundleRecipe(geometry=geometry)).manifest
    return BundleCost.of(manifest, BACKBONE)


def test_the_work_of_a_patch_grows_with_its_bottleneck():
    usual, hostile = cost_of(16).patch_work, cost_of(65_536).patch_work
    assert usual == pytest.approx(
        2 * 64 * 16 / (3 * 64 * 64), rel=0.05
    )  # down and up, by convolution
    assert hostile > 500


def test_the_work_of_a_history_is_counted_in_positions_of_the_backbone():
    plain = cost_of(1).history_work(50)
    assert plain == pytest.approx(51 + 5, rel=0.05)  # its positions, and what a row costs itself
    wide = cost_of(
        768
    )  # twelve times the channels: the patch takes eight times the backbone's work
    assert wide.history_work(50) / plain == pytest.approx(1 + wide.patch_work, rel=0.15)


def test_a_bundle_says_what_it_costs():
    names = tuple(f"label-{number}" for number in range(100))
    recipe = BundleRecipe(kind="tags", outputs=100, labels=names)
    bundle = verify_bundle(make_parts(recipe).encode(), backbone=TINY, limits=LIMITS)
    summary = VersionSummary.of(bundle)
    assert summary.answer_bytes == bundle.cost.answer_bytes > 1000
    assert summary.row_work > summary.patch_work > 0


def refused_as(recipe: BundleRecipe, limits: BundleLimits) -> set[object]:
    data = make_parts(recipe).encode()
    with pytest.raises(BundleRejected) as refused:
        verify_bundle(data, backbone=TINY, limits=limits)
    return {reason.code for reason in refused.value.reasons}


def test_a_patch_beyond_the_limit_is_refused():
    recipe = BundleRecipe(geometry=PatchGeometry("serial2", 200, (0, 1)))
    usual = replace(LIMITS, max_patch_work=BundleLimits().max_patch_work)
    assert refused_as(recipe, usual) == {ReasonCode.PATCH_TOO_COSTLY}
    verify_bundle(make_parts(recipe).encode(), backbone=TINY, limits=LIMITS)


@pytest.mark.parametrize("kind", ["classification", "tags"])
def test_an_answer_beyond_the_limit_is_refused(kind):
    names = tuple(f"label-{number}" for number in range(100))
    recipe = BundleRecipe(kind=kind, outputs=100, labels=names)
    assert refused_as(recipe, replace(LIMITS, max_answer_bytes=3000)) == {
        ReasonCode.ANSWER_TOO_LARGE
    }
    verify_bundle(make_parts(recipe).encode(), backbone=TINY, limits=LIMITS)


def test_a_ranking_answers_its_best_items_only():
    names = tuple(f"item-{number}" for number in range(100))
    recipe = BundleRecipe(kind="ranking", outputs=100, catalog=names)
    tight = replace(LIMITS, max_answer_bytes=1)
    verify_bundle(make_parts(recipe).encode(), backbone=TINY, limits=tight)
