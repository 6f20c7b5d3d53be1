"""Item tables in bundles: how their integers are stored, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from peterrec.model.network.item_gaps import pack_gaps
from peterrec.model.spec import FIRST_ITEM, TableSpec
from peterrec.patches.bundle.bundle import BundleLimits, build_bundle
from peterrec.patches.bundle.packed_table import listed_items, pack_codes, unpack_codes
from peterrec.patches.bundle.verify import BackboneIdentity, verify_bundle
from peterrec.patches.errors import BundleRejected, ReasonCode
from tests.patches.bundles import LIMITS, TINY, BundleParts, BundleRecipe, make_bundle, make_parts

EIGHT, FOUR = TableSpec(20), TableSpec(20, bits=4)


def parts_of(table: TableSpec = EIGHT, **overrides: Any) -> BundleParts:  # Any: recipe fields
    return make_parts(BundleRecipe(table=table, **overrides))


def reasons(data: bytes, backbone: BackboneIdentity = TINY) -> list[tuple[str, str]]:
    with pytest.raises(BundleRejected) as refused:
        verify_bundle(data, backbone=backbone, limits=LIMITS)
    return [(str(reason.code), reason.message) for reason in refused.value.reasons]


def with_manifest(change: Callable[[dict[str, Any]], None], **tensors: Any) -> bytes:
    """A bundle with a table, a right checksum and another manifest."""
    parts = parts_of().with_tensors(**tensors)
    document = json.loads(parts.manifest.to_json())
    change(document)
    return replace(parts, manifest_text=json.dumps(document)).encode()


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([4, 8]), st.integers(0, 1000))
def test_packed_integers_come_back(items: int, outputs: int, bits: int, seed: int) -> None:
    spec = TableSpec(items, bits)
    random = np.random.default_rng(seed)
    codes = random.integers(-spec.largest, spec.largest + 1, (items, outputs), dtype=np.int8)
    packed = pack_codes(codes, spec)
    assert packed.shape == spec.shapes(outputs)["table.weight"]
    np.testing.assert_array_equal(unpack_codes(packed, outputs, spec), codes, strict=True)


def test_four_bits_are_stored_as_the_format_says() -> None:
    codes = np.array([[1, -1, 7], [-7, 0, -2]], np.int8)
    packed = pack_codes(codes, TableSpec(2, bits=4))
    np.testing.assert_array_equal(packed, np.array([[0xF1, 0x07], [0x09, 0x0E]], np.uint8))


@pytest.mark.parametrize("table", [EIGHT, FOUR, TableSpec(3, 8, "count", 0.25)])
@pytest.mark.parametrize("kind", ["classification", "tags", "value"])
def test_a_bundle_with_a_table_comes_back_bit_for_bit(table: TableSpec, kind: str) -> None:
    parts = parts_of(table, kind=kind)
    data = build_bundle(parts.manifest, parts.tensors)
    bundle = verify_bundle(data, backbone=TINY, limits=LIMITS)
    assert bundle.manifest.table is not None
    assert bundle.manifest.table.spec() == table
    for name, tensor in load(data).items():
        np.testing.assert_array_equal(tensor, parts.tensors[name], strict=True)
    outputs = bundle.manifest.head.outputs
    assert bundle.table_bytes == table.items * (1 + table.row_bytes(outputs)) + 4 * outputs


def test_a_bundle_without_a_table_says_nothing_of_tables() -> None:
    document = json.loads(make_parts(BundleRecipe()).manifest.to_json())
    assert "table" not in document
    assert "length" not in document["probes"]
    assert verify_bundle(make_bundle(), backbone=TINY, limits=LIMITS).table_bytes == 0


@pytest.mark.parametrize("table", [EIGHT, FOUR])
def test_every_flipped_byte_of_a_bundle_with_a_table_is_found(table: TableSpec) -> None:
    data = make_bundle(table=table)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        assert reasons(bytes(damaged))


def test_every_truncation_of_a_bundle_with_a_table_is_found() -> None:
    data = make_bundle(table=FOUR)
    for length in range(0, len(data), 7):
        assert reasons(data[:length])


def test_a_bundle_that_its_table_makes_too_large_is_refused_before_it_is_read(
    tmp_path: Path,
) -> None:
    parts = parts_of(TableSpec(300_000))
    path = tmp_path / "large.bundle"
    path.write_bytes(parts.encode())
    with pytest.raises(BundleRejected) as refused:
        verify_bundle(path, backbone=TINY, limits=BundleLimits(max_bytes=1 << 20))
    assert [reason.code for reason in refused.value.reasons] == [ReasonCode.OVERSIZE]


def test_a_table_of_a_larger_vocabulary_is_refused() -> None:
    first_beyond = TINY.spec.token_count
    items = pack_gaps(np.append(np.arange(19) + FIRST_ITEM, first_beyond))
    data = parts_of().with_tensors(table__items=items).encode()
    assert reasons(data) == [
        ("table_invalid", "table.items: has tokens from 24 on, which stand for no item")
    ]


def test_a_table_of_another_vocabulary_is_refused() -> None:
    other = replace(TINY, fingerprint="ab" * 32)
    assert [code for code, _ in reasons(make_bundle(table=EIGHT), other)] == ["backbone_mismatch"]


def test_a_bundle_of_before_lists_tokens_and_is_read() -> None:
    items = np.delete(np.arange(4, 24, dtype=np.int32), 7)  # token 11 has no row
    parts = parts_of(TableSpec(19)).with_tensors(table__items=items)
    bundle = verify_bundle(parts.encode(), backbone=TINY, limits=LIMITS)
    assert bundle.manifest.table is not None
    read = listed_items(bundle.tensors, bundle.manifest.table.spec())
    np.testing.assert_array_equal(read, items)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tokens: tokens[::-1].copy(), "do not ascend"),
        (lambda tokens: np.where(tokens == 5, 4, tokens), "do not ascend"),
        (lambda tokens: tokens - 1, "begins with token 3, items begin at 4"),
        (lambda tokens: tokens - 9, "begins with token -5"),
    ],
)
def test_tokens_of_before_that_break_a_rule_are_refused(
    change: Callable[[Any], Any], problem: str
) -> None:
    tokens = np.arange(20, dtype=np.int32) + FIRST_ITEM
    found = reasons(parts_of().with_tensors(table__items=change(tokens).astype(np.int32)).encode())
    assert {code for code, _ in found} == {"table_invalid"}
    assert any(problem in message for _, message in found)


@pytest.mark.parametrize(
    ("table", "name", "change", "problem"),
    [
        (EIGHT, "table.items", lambda t: t[:-1].copy(), "lists 19 items where 20 have a row"),
        (EIGHT, "table.items", lambda t: np.append(t, 0), "lists 21 items where 20 have a row"),
        (EIGHT, "table.items", lambda t: t[:0].copy(), "lists 0 items where 20 have a row"),
        (EIGHT, "table.items", lambda t: np.append(t, 0x80), "ends inside a gap"),
        (EIGHT, "table.items", lambda t: np.append([0x80], t), "more bytes than it needs"),
        (EIGHT, "table.items", lambda t: np.append([0x80] * 5, t), "gap of more than 5 bytes"),
        (EIGHT, "table.items", lambda t: np.append([0xFF] * 4, t + 0x7F), "past token 2147483647"),
        (EIGHT, "table.weight", lambda t: np.where(t == t[0, 0], -128, t), "has -128"),
        (FOUR, "table.weight", lambda t: t & 0xF0 | 8, "has -8, the range is -7 to 7"),
        (FOUR, "table.weight", lambda t: t | 0x10, "the unused half"),
        (EIGHT, "table.scale", lambda t: -t, "has a scale below 0"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused(
    table: TableSpec, name: str, change: Callable[[Any], Any], problem: str
) -> None:
    parts = parts_of(table)
    tensor = parts.tensors[name]
    changed = change(tensor).astype(tensor.dtype)
    found = reasons(replace(parts, tensors=parts.tensors | {name: changed}).encode())
    assert {code for code, _ in found} == {"table_invalid"}
    assert any(problem in message for _, message in found)


def test_a_scale_that_is_no_number_is_refused() -> None:
    data = parts_of().with_tensors(table__scale=np.full(3, np.nan, np.float32)).encode()
    assert [code for code, _ in reasons(data)] == ["tensor_not_finite"]


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("items", 0, "greater than or equal to 1"),
        ("bits", 16, "bits is 16"),
        ("counting", "often", "'presence' or 'count'"),
        ("exponent", 2.0, "exponent is 2.0"),
        ("decay", 7, "Extra inputs are not permitted"),
    ],
)
def test_a_form_of_a_table_that_cannot_be_is_refused(
    field: str, value: object, problem: str
) -> None:
    found = reasons(with_manifest(lambda document: document["table"].update({field: value})))
    assert [code for code, _ in found] == ["manifest_invalid"]
    assert problem in found[0][1]


def test_another_number_of_items_than_the_manifest_says_is_refused() -> None:
    found = reasons(with_manifest(lambda document: document["table"].update(items=21)))
    assert [code for code, _ in found] == ["tensor_shape", "table_invalid"]


def test_a_table_that_the_manifest_does_not_know_is_unexpected() -> None:
    parts = make_parts(BundleRecipe()).with_tensors(table__scale=np.ones(3, np.float32))
    assert [code for code, _ in reasons(parts.encode())] == ["tensor_unexpected"]


def test_the_table_of_a_ranking_has_a_weight_per_channel() -> None:
    recipe = BundleRecipe(kind="ranking", outputs=5, table=TableSpec(8), probe_length=12)
    parts = make_parts(recipe)
    assert parts.tensors["table.weight"].shape == (8, recipe.backbone.spec.channels)
    verify_bundle(parts.encode(), backbone=TINY, limits=LIMITS)
    narrow = parts.with_tensors(table__scale=np.ones(5, np.float32))
    assert [code for code, _ in reasons(narrow.encode())] == ["tensor_shape"]


@pytest.mark.parametrize(
    ("length", "problem"),
    [(3, "must be longer than max_len"), (10_001, "less than or equal to 10000")],
)
def test_probes_of_a_table_are_longer_than_the_network_reads(length: int, problem: str) -> None:
    found = reasons(with_manifest(lambda document: document["probes"].update(length=length)))
    assert [code for code, _ in found] == ["manifest_invalid"]
    assert problem in found[0][1]


def test_probes_without_a_table_have_no_length_of_their_own() -> None:
    document = json.loads(make_parts(BundleRecipe()).manifest.to_json())
    document["probes"]["length"] = 9
    data = replace(make_parts(BundleRecipe()), manifest_text=json.dumps(document)).encode()
    assert "only probes of an item table have a length" in reasons(data)[0][1]


def test_probes_that_show_the_table_to_nobody_are_refused() -> None:
    parts = parts_of(TableSpec(1))
    histories = np.zeros((2, 8), np.int32)
    histories[1, -4:] = (9, 4, 4, 4)  # item 4 has a row, but the network reads it as well
    found = reasons(parts.with_tensors(probe__histories=histories).encode())
    assert [code for code, _ in found] == ["probes_invalid"]
    assert "nothing proves that whole histories are read" in found[0][1]
    histories[1, -4] = 4
    nothing = parts.with_tensors(
        probe__histories=histories, table__weight=np.zeros((1, 3), np.int8)
    )
    assert [code for code, _ in reasons(nothing.encode())] == ["probes_invalid"]
    accepted = parts.with_tensors(probe__histories=histories).encode()
    assert verify_bundle(accepted, backbone=TINY, limits=LIMITS).table_bytes
