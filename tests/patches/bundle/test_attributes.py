"""Titles and attributes of bundles: what is stored, what is refused, what it changes."""

from dataclasses import replace

import numpy as np
import pytest

from peterrec.patches.bundle.attributes import (
    LATEST,
    NO_TIME,
    attribute_tensors,
    attributes_of,
    list_column,
    number_column,
    text_column,
    time_column,
)
from peterrec.patches.bundle.bundle import open_bundle
from peterrec.patches.bundle.described import describe_bundle, inherit_descriptions
from peterrec.patches.bundle.manifest import ManifestAttribute
from peterrec.patches.bundle.outputs import Outputs, output_differences
from peterrec.patches.bundle.verify import verify_bundle
from peterrec.patches.errors import BundleRejected, ReasonCode
from tests.patches.bundles import LIMITS, TINY, BundleParts, BundleRecipe, make_bundle, make_parts

COLUMNS = {
    "genre": list_column([["b", "a"], [], ["a"]]),
    "maker": text_column(["x", None, "Ü"]),
    "price": number_column(np.array([1.5, np.nan, -0.1])),
    "since": time_column(np.array([0, NO_TIME, LATEST])),
}


def parts_with_columns() -> BundleParts:
    parts = make_parts(BundleRecipe("ranking"))
    forms = {name: column.form for name, column in COLUMNS.items()}
    manifest = parts.manifest.model_copy(update={"attributes": forms})
    return replace(parts, manifest=manifest, tensors=parts.tensors | attribute_tensors(COLUMNS))


def reasons(data: bytes) -> list[ReasonCode | str]:
    with pytest.raises(BundleRejected) as refused:
        verify_bundle(data, backbone=TINY, limits=LIMITS)
    return [reason.code for reason in refused.value.reasons]


def test_a_verified_bundle_has_the_columns_that_were_packed() -> None:
    bundle = verify_bundle(parts_with_columns().encode(), backbone=TINY, limits=LIMITS)
    assert bundle.catalog is not None
    found = bundle.catalog.attributes
    assert list(found) == sorted(COLUMNS)
    for name, column in COLUMNS.items():
        assert found[name].form == column.form
        np.testing.assert_array_equal(found[name].has_value, column.has_value)
    assert list(found["maker"].texts or ()) == ["x", "Ü"]
    np.testing.assert_array_equal(found["price"].numbers, COLUMNS["price"].numbers)
    np.testing.assert_array_equal(found["genre"].rows, [0, 2, 2, 3])


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("attribute.0.rows", [0, 2, 1, 3]),
        ("attribute.0.rows", [0, 2, 2, 4]),
        ("attribute.0.rows", [1, 2, 2, 3]),
        ("attribute.0.codes", [0, 1, 2]),
        ("attribute.0.codes", [0, 1, -1]),
        ("attribute.1.codes", [0, -2, 1]),
        ("attribute.1.codes", [0, 2, 1]),
        ("attribute.1.offsets", [0, 2, 3]),
        ("attribute.1.offsets", [0, 1, 4]),
        ("attribute.1.offsets", [0, 0, 3]),
        ("attribute.1.offsets", [0, -5, 3]),
        ("attribute.1.offsets", []),
        ("attribute.1.bytes", [255, 255, 255]),
        ("attribute.1.bytes", [0xC3, 0x9C, 0x78]),
        ("attribute.2.numbers", [1.0, np.inf, 2.0]),
        ("attribute.3.times", [0, 1, LATEST + 1]),
        ("attribute.3.times", [0, 1, NO_TIME + 1]),
    ],
)
def test_a_column_that_breaks_a_rule_is_refused(tensor: str, value: list[float]) -> None:
    parts = parts_with_columns()
    changed = np.array(value).astype(parts.tensors[tensor].dtype)
    data = replace(parts, tensors=parts.tensors | {tensor: changed}).encode()
    assert set(reasons(data)) == {ReasonCode.ATTRIBUTES_INVALID}


@pytest.mark.parametrize(
    "offsets", [[0, 1, 2], [0, 1, 2, 4], [0, 2, 1, 3], [1, 1, 2, 3], [0, -1, 2, 3]]
)
def test_titles_that_break_a_rule_are_refused(offsets: list[int]) -> None:
    parts = make_parts(BundleRecipe())
    head = parts.manifest.head.model_copy(update={"title_bytes": 3})
    titles: dict[str, np.ndarray] = {
        "title.bytes": np.frombuffer(b"abc", np.uint8),
        "title.offsets": np.array(offsets, np.int64),
    }
    parts = replace(parts.with_manifest(head=head), tensors=parts.tensors | titles)
    assert set(reasons(parts.encode())) <= {ReasonCode.TITLES_INVALID, ReasonCode.TENSOR_SHAPE}


def test_a_title_of_any_length_is_refused_or_cut() -> None:
    data = make_bundle(labels=("a", "b", "c"))
    titles = {"a": "ü" * 300}
    assert [*(open_titles(describe_bundle(data, titles)))] == ["ü" * 256, "", ""]
    parts = make_parts(BundleRecipe())
    long = ("ü" * 257).encode()
    head = parts.manifest.head.model_copy(update={"title_bytes": len(long)})
    tensors: dict[str, np.ndarray] = {
        "title.bytes": np.frombuffer(long, np.uint8),
        "title.offsets": np.array([0, len(long), len(long), len(long)]),
    }
    parts = replace(parts.with_manifest(head=head), tensors=parts.tensors | tensors)
    assert reasons(parts.encode()) == [ReasonCode.TITLES_INVALID]


def open_titles(data: bytes) -> list[str]:
    bundle = verify_bundle(data, backbone=TINY, limits=LIMITS)
    return [*(bundle.titles or ())]


def test_only_rankings_have_attributes_and_values_have_no_titles() -> None:
    forms = {"genre": ManifestAttribute(type="text")}
    parts = make_parts(BundleRecipe()).with_manifest(attributes=forms)
    assert ReasonCode.MANIFEST_INVALID in reasons(parts.encode())
    parts = make_parts(BundleRecipe("value"))
    head = parts.manifest.head.model_copy(update={"title_bytes": 3})
    assert ReasonCode.MANIFEST_INVALID in reasons(parts.with_manifest(head=head).encode())


def test_a_bundle_without_titles_and_attributes_has_the_bytes_of_before() -> None:
    data = make_bundle("ranking")
    described = describe_bundle(data, {"film-0": "One"}, COLUMNS)
    assert b"title_bytes" not in data
    assert b"attributes" not in data
    assert describe_bundle(described, {}, {}) == data


def test_titles_change_no_outputs_and_attributes_only_where_one_is_missing() -> None:
    plain = outputs(make_bundle("ranking"))
    titled = outputs(describe_bundle(make_bundle("ranking"), {"film-0": "One"}))
    rich = outputs(describe_bundle(make_bundle("ranking"), None, COLUMNS))
    other = outputs(
        describe_bundle(make_bundle("ranking"), None, {"maker": number_column(np.zeros(3))})
    )
    assert plain.digest == titled.digest
    assert output_differences(plain, rich) == []
    assert output_differences(rich, plain) == ["attributes: − 'genre', 'maker', 'price', 'since'"]
    assert "attribute 'maker': text → number" in output_differences(rich, other)


def outputs(data: bytes) -> Outputs:
    contents = open_bundle(data)
    return Outputs.of(contents.manifest, contents.tensors)


def test_columns_are_numbered_in_the_order_of_their_names() -> None:
    contents = open_bundle(describe_bundle(make_bundle("ranking"), None, COLUMNS))
    found = attributes_of(contents.manifest, contents.tensors)
    assert found["price"].numbers is not None
    assert "attribute.2.numbers" in contents.tensors


def test_titles_and_attributes_are_inherited_by_item_whatever_its_place() -> None:
    titles = {"a": "First", "c": "Third"}
    recipe = BundleRecipe("ranking", catalog=("a", "b", "c"))
    older = describe_bundle(make_parts(recipe).encode(), titles, COLUMNS)
    data = make_parts(replace(recipe, outputs=4, catalog=("c", "new", "b", "a"))).encode()
    found = verify_bundle(inherit_descriptions(data, older), backbone=TINY, limits=LIMITS)
    assert list(found.titles or ()) == ["Third", "", "", "First"]
    expected = {
        "genre": list_column([["a"], [], [], ["a", "b"]]),
        "maker": text_column(["Ü", None, None, "x"]),
        "price": number_column(np.array([-0.1, np.nan, np.nan, 1.5])),
        "since": time_column(np.array([LATEST, NO_TIME, NO_TIME, 0])),
    }
    stored = {n: t for n, t in found.tensors.items() if n.startswith("attribute.")}
    assert set(stored) == set(attribute_tensors(expected))
    for name, tensor in attribute_tensors(expected).items():
        np.testing.assert_array_equal(stored[name], tensor)


@pytest.mark.parametrize("kind", ["classification", "tags", "value", "ranking"])
def test_a_bundle_without_descriptions_gives_none(kind: str) -> None:
    data = make_parts(BundleRecipe(kind)).encode()
    assert inherit_descriptions(data, make_parts(BundleRecipe(kind, seed=2)).encode()) == data


def test_labels_inherit_their_titles() -> None:
    names = ("m", "f", "x")
    recipe = BundleRecipe("classification", labels=names)
    older = describe_bundle(make_parts(recipe).encode(), {"m": "Male", "f": "Female"})
    data = make_parts(replace(recipe, labels=("f", "m", "x"), seed=2)).encode()
    found = verify_bundle(inherit_descriptions(data, older), backbone=TINY, limits=LIMITS)
    assert list(found.titles or ()) == ["Female", "Male", ""]
