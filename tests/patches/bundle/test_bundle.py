"""Packing, reading back and the catalog."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load

from peterrec.model.insertions import INSERTIONS
from peterrec.model.kinds.value import ValueScale
from peterrec.model.spec import HeadKind, PatchGeometry
from peterrec.patches.bundle.bundle import Catalog, build_bundle, digest_of, read_manifest
from peterrec.patches.bundle.verify import verify_bundle
from peterrec.patches.errors import BundleRejected, InvalidDigest, ReasonCode
from peterrec.patches.identity import format_digest, parse_digest
from tests.patches.bundles import LIMITS, TINY, BundleRecipe, make_bundle, make_parts

KINDS: tuple[HeadKind, ...] = ("classification", "tags", "ranking", "value")


@st.composite
def geometries(draw: st.DrawFn) -> PatchGeometry:
    insertion = draw(st.sampled_from(sorted(INSERTIONS)))
    cardinality = draw(st.integers(1, 2))
    return PatchGeometry(
        insertion=insertion,
        bottleneck=cardinality * draw(st.integers(1, 3)),
        blocks=draw(st.sampled_from([(), (0,), (1,), (0, 1)])),
        cardinality=cardinality,
        has_inner_skip=INSERTIONS[insertion].may_skip and draw(st.booleans()),
        has_norms=draw(st.booleans()),
        has_cls=draw(st.booleans()),
    )


recipes = st.builds(
    BundleRecipe,
    kind=st.sampled_from(KINDS),
    outputs=st.integers(1, 5),
    seed=st.integers(0, 1000),
    geometry=geometries(),
    probe_count=st.integers(1, 3),
)


@given(recipes)
def test_what_is_packed_comes_back_bit_for_bit(recipe: BundleRecipe) -> None:
    parts = make_parts(recipe)
    bundle = verify_bundle(
        build_bundle(parts.manifest, parts.tensors), backbone=TINY, limits=LIMITS
    )
    assert bundle.manifest == parts.manifest
    assert bundle.manifest.patch.geometry() == recipe.geometry
    assert set(bundle.tensors) == set(parts.tensors)
    for name, tensor in parts.tensors.items():
        np.testing.assert_array_equal(bundle.tensors[name], tensor, strict=True)


def test_a_values_scale_comes_back_to_the_last_digit_and_is_left_out_where_it_changes_nothing() -> (
    None
):
    line = ValueScale(scale=0.1 + 0.2, shift=20240000000.1)
    parts = make_parts(BundleRecipe(kind="value", line=line))
    bundle = verify_bundle(parts.encode(), backbone=TINY, limits=LIMITS)
    assert bundle.manifest.head.value_scale == line
    assert (
        "scale" not in json.loads(make_parts(BundleRecipe(kind="value")).manifest.to_json())["head"]
    )


@given(recipes)
def test_the_same_parts_give_the_same_bytes(recipe: BundleRecipe) -> None:
    first, second = make_parts(recipe), make_parts(recipe)
    reordered = dict(reversed(second.tensors.items()))
    assert build_bundle(first.manifest, first.tensors) == build_bundle(second.manifest, reordered)


@pytest.mark.parametrize("kind", KINDS)
def test_the_safetensors_library_reads_a_bundle(kind: HeadKind, tmp_path: Path) -> None:
    parts = make_parts(BundleRecipe(kind=kind))
    path = tmp_path / "x.bundle"
    path.write_bytes(parts.encode())
    with safe_open(path, "numpy") as file:
        assert file.metadata()["format"] == "peterrec.bundle/1"
        assert json.loads(file.metadata()["manifest"])["name"] == "gender"
    for name, tensor in load(path.read_bytes()).items():
        np.testing.assert_array_equal(tensor, parts.tensors[name])


def test_verified_tensors_are_views_that_nobody_can_write() -> None:
    data = make_bundle("ranking")
    bundle = verify_bundle(data, backbone=TINY, limits=LIMITS)
    whole = np.frombuffer(data, np.uint8)
    assert all(np.shares_memory(whole, tensor) for tensor in bundle.tensors.values())
    assert not any(tensor.flags.writeable for tensor in bundle.tensors.values())
    with pytest.raises(TypeError):
        bundle.tensors["head.weight"] = whole  # type: ignore[index]  # this is the point


def test_a_buffer_changed_after_verification_does_not_change_the_bundle() -> None:
    buffer = bytearray(make_bundle())
    bundle = verify_bundle(memoryview(buffer), backbone=TINY, limits=LIMITS)
    before = bundle.tensors["head.weight"].copy()
    buffer[-200:] = bytes(200)
    np.testing.assert_array_equal(bundle.tensors["head.weight"], before)


def test_a_verified_bundle_knows_its_digest_and_what_it_costs() -> None:
    data = make_bundle("classification")
    bundle = verify_bundle(data, backbone=TINY, limits=LIMITS, expected_digest=digest_of(data))
    assert bundle.digest == digest_of(data)
    assert bundle.size_bytes == len(data)
    assert bundle.patch_bytes == 4 * 4 * (4 * 2 + 2 + 2 * 4 + 4)
    assert bundle.head_bytes == 4 * (3 * 4 + 3)
    assert bundle.catalog is None


def test_a_bundle_is_verified_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bundle"
    path.write_bytes(make_bundle())
    from_file = verify_bundle(path, backbone=TINY, limits=LIMITS)
    assert from_file.digest == digest_of(path.read_bytes())


def test_building_a_bundle_of_parts_that_do_not_fit_names_every_misfit() -> None:
    parts = make_parts(BundleRecipe()).without_tensor("patch.up")
    parts = parts.with_tensors(head__weight=np.zeros((2, 4), np.float32))
    with pytest.raises(BundleRejected) as refused:
        build_bundle(parts.manifest, parts.tensors)
    codes = {reason.code for reason in refused.value.reasons}
    assert codes == {ReasonCode.TENSOR_MISSING, ReasonCode.TENSOR_SHAPE}


def test_building_a_bundle_with_float64_weights_is_refused() -> None:
    parts = make_parts(BundleRecipe()).with_tensors(head__weight=np.zeros((3, 4)))
    with pytest.raises(BundleRejected, match=r"head\.weight is 'F64'"):
        build_bundle(parts.manifest, parts.tensors)


def test_the_manifest_is_read_without_a_backbone_from_the_header_alone(tmp_path: Path) -> None:
    data = make_bundle("tags", name="interests")
    path = tmp_path / "x.bundle"
    path.write_bytes(data)
    manifest = read_manifest(path)
    assert (manifest.name, manifest.kind) == ("interests", "tags")
    assert manifest == read_manifest(data)


@pytest.mark.parametrize("data", [b"", b"\x00" * 8, b"hello", b'{"a": 1}', b"\x80\x04\x95abcdefgh"])
def test_reading_the_manifest_of_something_else_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.bundle"
    path.write_bytes(data)
    with pytest.raises(BundleRejected):
        read_manifest(data)
    with pytest.raises(BundleRejected):
        read_manifest(path)


@given(
    st.lists(
        st.text(min_size=1).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t)),
        min_size=1,
        unique=True,
    )
)
def test_a_packed_catalog_gives_back_its_items_and_finds_them(items: list[str]) -> None:
    catalog = Catalog.pack(items)
    again = Catalog.of(catalog.tensors())
    assert list(again) == items
    assert len(again) == len(items)
    assert [again.index_of(item) for item in items] == list(range(len(items)))


def test_a_catalog_does_not_know_other_items_nor_negative_places() -> None:
    catalog = Catalog.pack(["a", "b"])
    assert catalog.index_of("c") is None
    with pytest.raises(IndexError):
        catalog[-1]
    with pytest.raises(IndexError):
        catalog[2]


def test_a_digest_is_written_with_its_algorithm_and_read_with_or_without() -> None:
    digest = digest_of(b"")
    assert format_digest(digest) == f"sha256:{digest}"
    assert parse_digest(f"sha256:{digest}") == parse_digest(digest) == digest


@pytest.mark.parametrize(
    "text", ["", "sha256:", "a" * 63, "A" * 64, "md5:" + "a" * 64, "a" * 64 + "\n"]
)
def test_a_malformed_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidDigest, match="is not a bundle digest"):
        parse_digest(text)
