"""Each refusal, with its code; and that nothing broken gets through."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peterrec.model.errors import Category
from peterrec.model.spec import PatchGeometry
from peterrec.patches.bundle.bundle import BundleLimits, build_bundle, digest_of
from peterrec.patches.bundle.cost import BundleCost
from peterrec.patches.bundle.verify import VerifiedBundle, verify_bundle
from peterrec.patches.errors import (
    MAX_REASONS,
    BundleRejected,
    BundleTooLarge,
    BundleUnsafe,
    ReasonCode,
)
from peterrec.patches.identity import Blob
from tests.patches.bundles import (
    LIMITS,
    TINY,
    BundleParts,
    BundleRecipe,
    make_bundle,
    make_parts,
)


def refuse(data: bytes, limits: BundleLimits = LIMITS) -> BundleRejected:
    with pytest.raises(BundleRejected) as refused:
        verify_bundle(data, backbone=TINY, limits=limits)
    assert all(reason.message for reason in refused.value.reasons)
    return refused.value


def codes(data: bytes) -> list[ReasonCode | str]:
    return [reason.code for reason in refuse(data).reasons]


def with_header(change: Callable[[dict[str, object]], None], data: bytes | None = None) -> bytes:
    """A bundle whose header JSON was changed by hand."""
    data = data or make_bundle()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def with_manifest_field(path: str, value: object) -> bytes:
    """A bundle with a right checksum whose manifest has another value at a dotted path."""
    parts = make_parts(BundleRecipe())
    manifest = json.loads(parts.manifest.to_json())
    *parents, last = path.split(".")
    place = manifest
    for parent in parents:
        place = place[parent]
    place[last] = value
    return replace(parts, manifest_text=json.dumps(manifest)).encode()


def test_every_flipped_byte_is_found_without_knowing_the_digest() -> None:
    data = make_bundle("ranking")
    for at in range(len(data)):
        for flip in (0x01, 0x20, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= flip
            refuse(bytes(damaged))


def test_every_truncation_is_found() -> None:
    data = make_bundle()
    for length in range(len(data)):
        refuse(data[:length])


@given(st.data())
def test_no_garbage_in_place_of_a_part_of_the_file_gets_through(draw: st.DataObject) -> None:
    data = make_bundle()
    at = draw.draw(st.integers(0, len(data) - 1))
    garbage = draw.draw(st.binary(min_size=1, max_size=40))
    damaged = data[:at] + garbage + data[at + len(garbage) :]
    if damaged != data:
        refuse(damaged)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    refuse(data)


def test_a_bundle_above_the_size_limit_is_refused_as_too_large(tmp_path: Path) -> None:
    data = make_bundle()
    limits = BundleLimits(max_bytes=len(data) - 1)
    error = refuse(data, limits)
    assert isinstance(error, BundleTooLarge)
    assert error.category is Category.TOO_LARGE
    assert str(len(data)) in error.message
    path = tmp_path / "x.bundle"
    path.write_bytes(data)
    with pytest.raises(BundleTooLarge):
        verify_bundle(path, backbone=TINY, limits=limits)


def test_a_header_that_claims_gigabytes_is_refused_before_it_is_allocated() -> None:
    error = refuse((1 << 40).to_bytes(8, "little") + b"{" + bytes(100))
    assert [reason.code for reason in error.reasons] == [ReasonCode.HEADER_TOO_LARGE]
    assert error.category is Category.TOO_LARGE


class Exploit:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return pytest.fail, ("the pickle was executed",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_refused_unread_as_an_unsafe_format(protocol: int) -> None:
    error = refuse(pickle.dumps({"weights": Exploit()}, protocol))
    assert isinstance(error, BundleUnsafe)
    assert error.category is Category.UNSAFE_FORMAT
    assert [reason.code for reason in error.reasons] == [ReasonCode.UNSAFE_FORMAT]


def test_a_zip_of_pickles_as_torch_saves_them_is_refused_as_an_unsafe_format() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Exploit()))
    assert codes(buffer.getvalue()) == [ReasonCode.UNSAFE_FORMAT]


def test_a_numpy_file_is_refused_as_an_unsafe_format() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Exploit()], object), allow_pickle=True)
    assert codes(buffer.getvalue()) == [ReasonCode.UNSAFE_FORMAT]


def test_a_header_length_that_looks_like_a_pickle_is_no_pickle() -> None:
    length = int.from_bytes(b"\x80\x04", "little")
    data = (length).to_bytes(8, "little") + b"{" + b" " * (length - 1) + bytes(8)
    assert codes(data) == [ReasonCode.HEADER_MALFORMED]


def test_an_empty_file_is_truncated() -> None:
    assert codes(b"") == [ReasonCode.TRUNCATED]


def test_a_file_that_ends_early_is_truncated_and_its_checksum_wrong() -> None:
    found = codes(make_bundle()[:-8])
    assert ReasonCode.TRUNCATED in found
    assert ReasonCode.CHECKSUM_MISMATCH in found


@pytest.mark.parametrize(
    "header",
    [
        b"{]",
        b"{" * 50_000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b'{"a":NaN}',
        b'{"a":1,"a":1}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"\xff":1}',
        '{"a":1}'.encode("utf-16-le"),
    ],
)
def test_a_header_that_is_no_plain_json_is_malformed(header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header
    assert ReasonCode.HEADER_MALFORMED in codes(data)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {"dtype": "F32", "shape": [1]},
        {"dtype": 1, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**64], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [2**40, 0, 2], "data_offsets": [0, 0]},
        {"dtype": "U8", "shape": [2**21, 2**21, 2**21], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1},
    ],
)
def test_a_malformed_tensor_entry_is_refused(fields: object) -> None:
    data = with_header(lambda header: header.update({"head.weight": fields}))
    assert ReasonCode.HEADER_MALFORMED in codes(data)


def test_a_safetensors_file_without_a_manifest_is_no_bundle() -> None:
    data = with_header(lambda header: header.update(__metadata__=None))
    assert codes(data) == [ReasonCode.NOT_A_BUNDLE]


def test_further_metadata_is_refused() -> None:
    extra = {"checksum": "0" * 64, "format": "peterrec.bundle/1", "manifest": "{}", "x": "y"}
    data = with_header(lambda header: header.update(__metadata__=extra))
    assert codes(data) == [ReasonCode.HEADER_MALFORMED]


def test_a_checksum_hidden_in_a_second_place_is_refused() -> None:
    data = make_bundle()
    twice = data.replace(b'{"__metadata__"', b'{"x":{"checksum":"0"},"__metadata__"', 1)
    length = int.from_bytes(data[:8], "little") + len(twice) - len(data)
    assert ReasonCode.HEADER_MALFORMED in codes(length.to_bytes(8, "little") + twice[8:])


def shift(header: dict[str, object], name: str, by: int) -> None:
    entry = header[name]
    assert isinstance(entry, dict)
    entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]


@pytest.mark.parametrize("by", [-8, -4, 4, 8, 1 << 40])
def test_tensors_that_overlap_or_leave_gaps_are_refused(by: int) -> None:
    data = with_header(lambda header: shift(header, "probe.histories", by))
    assert {ReasonCode.OFFSETS_INVALID, ReasonCode.HEADER_MALFORMED} & set(codes(data))


def test_bytes_after_the_last_tensor_are_refused() -> None:
    assert ReasonCode.OFFSETS_INVALID in codes(make_bundle() + b"PK\x05\x06")


def test_misaligned_tensors_are_refused() -> None:
    data = make_bundle()
    length = int.from_bytes(data[:8], "little")
    moved = (length + 2).to_bytes(8, "little") + data[8 : 8 + length] + b"  " + data[8 + length :]
    assert ReasonCode.OFFSETS_INVALID in codes(moved)


def test_another_checksum_is_refused() -> None:
    data = make_bundle()
    at = data.index(b'"checksum":"') + 12
    forged = data[:at] + b"f" * 64 + data[at + 64 :]
    assert codes(forged) == [ReasonCode.CHECKSUM_MISMATCH]


def test_another_digest_than_expected_is_refused() -> None:
    with pytest.raises(BundleRejected) as refused:
        verify_bundle(make_bundle(), backbone=TINY, limits=LIMITS, expected_digest=digest_of(b""))
    assert [reason.code for reason in refused.value.reasons] == [ReasonCode.DIGEST_MISMATCH]


@pytest.mark.parametrize("schema", ["peterrec.bundle/2", "peterrec.bundle/1.1"])
def test_another_schema_version_has_its_own_code(schema: str) -> None:
    assert codes(with_manifest_field("schema", schema)) == [ReasonCode.SCHEMA_UNSUPPORTED]


def test_another_format_in_the_metadata_has_the_same_code() -> None:
    data = make_bundle().replace(b'"format":"peterrec.bundle/1"', b'"format":"peterrec.bundle/9"')
    assert ReasonCode.SCHEMA_UNSUPPORTED in codes(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", "somebody.else/1"),
        ("schema", None),
        ("name", "../../etc/passwd"),
        ("name", "x" * 129),
        ("surprise", 1),
        ("backbone", "abc"),
        ("input.padding", "right"),
        ("input.max_len", 0),
        ("input.max_len", True),
        ("patch.insertion", "serial3"),
        ("patch.bottleneck", 0),
        ("patch.bottleneck", 10**30),
        ("patch.blocks", [1, 0]),
        ("patch.blocks", "01"),
        ("patch.has_inner_skip", True),
        ("patch.cardinality", 3),
        ("head.kind", "regression"),
        ("head.outputs", 0),
        ("head.temperature", 0),
        ("head.temperature", -1),
        ("head.temperature", 1e-320),
        ("head.temperature", 1e300),
        ("head.labels", ["a", "b", 3]),
        ("head.scale", 2.0),
        ("head.shift", 1.0),
        ("head", {"kind": "value", "outputs": 1, "scale": 0.0}),
        ("head", {"kind": "value", "outputs": 1, "scale": 1e251}),
        ("head", {"kind": "value", "outputs": 1, "shift": -1e251}),
        ("metrics", {f"m{index}": 0.5 for index in range(1001)}),
        ("head.threshold", 1.5),
        ("head.surprise", 1),
        ("head", {"kind": "value", "outputs": 2}),
        ("probes.count", 0),
        ("probes.count", 257),
        ("probes.columns", 4097),
        ("metrics", {"auc": "high"}),
        ("metrics", {"auc": float("inf")}),
        ("provenance.created_at", "2026-01-01T00:00:00"),
        ("provenance.created_at", "yesterday"),
        ("provenance.seed", -1),
        ("provenance", {}),
    ],
)
def test_an_invalid_manifest_field_is_refused(path: str, value: object) -> None:
    data = with_manifest_field(path, value)
    assert ReasonCode.MANIFEST_INVALID in codes(data)


def test_every_problem_of_a_manifest_is_one_reason() -> None:
    manifest = json.loads(make_parts(BundleRecipe()).manifest.to_json())
    manifest["name"] = "-"
    manifest["head"]["temperature"] = 0
    del manifest["provenance"]["seed"]
    data = replace(make_parts(BundleRecipe()), manifest_text=json.dumps(manifest)).encode()
    reasons = refuse(data).reasons
    assert [reason.code for reason in reasons] == [ReasonCode.MANIFEST_INVALID] * 3
    messages = " ".join(reason.message for reason in reasons)
    assert "name:" in messages
    assert "head.temperature:" in messages
    assert "provenance.seed:" in messages


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema":1,"schema":2}', "\ud800"])
def test_a_manifest_that_is_no_json_object_is_refused(text: str) -> None:
    parts = make_parts(BundleRecipe())
    if text == "\ud800":
        data = with_header(lambda header: set_manifest(header, text))
    else:
        data = with_header(lambda header: set_manifest(header, text), parts.encode())
    assert ReasonCode.MANIFEST_INVALID in codes(data)


def set_manifest(header: dict[str, object], text: str) -> None:
    metadata = header["__metadata__"]
    assert isinstance(metadata, dict)
    metadata["manifest"] = text


def test_a_bad_label_among_millions_costs_one_reason() -> None:
    assert codes(with_manifest_field("head.labels", [1] * 20_000)) == [ReasonCode.MANIFEST_INVALID]


def test_a_million_problems_are_counted_not_listed() -> None:
    data = with_manifest_field("metrics", {f"m{index}": "bad" for index in range(500)})
    reasons = refuse(data).reasons
    assert len(reasons) == MAX_REASONS + 1
    assert reasons[-1].code is ReasonCode.MORE_REASONS
    assert "400" in reasons[-1].message


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("classification", ["a", "b"]),
        ("classification", ["a", "b", "b"]),
        ("classification", None),
        ("tags", ["a"]),
    ],
)
def test_labels_that_do_not_match_the_outputs_are_refused(
    kind: str, labels: list[str] | None
) -> None:
    manifest = json.loads(make_parts(BundleRecipe()).manifest.to_json())
    manifest["head"] |= {"kind": kind, "labels": labels}
    data = replace(make_parts(BundleRecipe()), manifest_text=json.dumps(manifest)).encode()
    assert codes(data) == [ReasonCode.LABELS_MISMATCH]


def test_labels_on_a_ranking_are_refused() -> None:
    parts = make_parts(BundleRecipe(kind="ranking"))
    manifest = json.loads(parts.manifest.to_json())
    manifest["head"]["labels"] = ["a", "b", "c"]
    data = replace(parts, manifest_text=json.dumps(manifest)).encode()
    assert codes(data) == [ReasonCode.LABELS_MISMATCH]


@pytest.mark.parametrize("name", sorted(make_parts(BundleRecipe(kind="ranking")).tensors))
def test_each_missing_tensor_is_named(name: str) -> None:
    error = refuse(make_parts(BundleRecipe(kind="ranking")).without_tensor(name).encode())
    assert [reason.code for reason in error.reasons] == [ReasonCode.TENSOR_MISSING]
    assert name in error.message


def test_a_further_tensor_is_refused() -> None:
    parts = make_parts(BundleRecipe()).with_tensors(patch__cls=np.zeros(4, np.float32))
    assert codes(parts.encode()) == [ReasonCode.TENSOR_UNEXPECTED]


def test_a_tensor_of_another_dtype_is_refused() -> None:
    parts = make_parts(BundleRecipe()).with_tensors(head__weight=np.zeros((3, 4), np.int32))
    assert codes(parts.encode()) == [ReasonCode.TENSOR_DTYPE]


def test_a_dtype_that_no_bundle_uses_is_refused() -> None:
    data = make_bundle().replace(b'"dtype":"F32"', b'"dtype":"F16"')
    assert ReasonCode.TENSOR_DTYPE in codes(data)


@pytest.mark.parametrize("shape", [(4, 3), (3, 5), (12,), (3, 4, 1), (0, 4)])
def test_a_tensor_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    parts = make_parts(BundleRecipe()).with_tensors(head__weight=np.zeros(shape, np.float32))
    assert codes(parts.encode()) == [ReasonCode.TENSOR_SHAPE]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["patch.up", "head.bias", "probe.logits"])
def test_a_value_that_is_not_finite_is_refused(name: str, value: float) -> None:
    parts = make_parts(BundleRecipe())
    spoiled = parts.tensors[name].copy()
    spoiled.flat[-1] = value
    error = refuse(replace(parts, tensors=parts.tensors | {name: spoiled}).encode())
    assert [reason.code for reason in error.reasons] == [ReasonCode.TENSOR_NOT_FINITE]
    assert f"1 of {spoiled.size}" in error.message


def ranking_with_catalog(packed: bytes, offsets: list[int]) -> BundleParts:
    return make_parts(BundleRecipe(kind="ranking", outputs=len(offsets) - 1)).with_tensors(
        catalog__bytes=np.frombuffer(packed, np.uint8),
        catalog__offsets=np.array(offsets, np.int64),
    )


@pytest.mark.parametrize(
    ("packed", "offsets"),
    [
        (b"abc", [1, 2, 3]),
        (b"abc", [0, 1, 2]),
        (b"abc", [0, 1, 4]),
        (b"abc", [0, 2, 1, 3]),
        (b"abc", [0, -1, 2, 3]),
        (b"abc", [0, 1 << 60, 2, 3]),
        (b"abc", [0, 1, 1, 3]),
        (b"aa", [0, 1, 2]),
        (b"\xff\xfe", [0, 1, 2]),
        ("é".encode(), [0, 1, 2]),
        (b"", [0, 0]),
    ],
)
def test_a_catalog_that_is_no_list_of_different_ids_is_refused(
    packed: bytes, offsets: list[int]
) -> None:
    assert codes(ranking_with_catalog(packed, offsets).encode()) == [ReasonCode.CATALOG_INVALID]


def test_a_catalog_of_another_length_than_the_head_is_refused() -> None:
    parts = make_parts(BundleRecipe(kind="ranking")).with_tensors(
        catalog__bytes=np.frombuffer(b"ab", np.uint8), catalog__offsets=np.array([0, 1, 2])
    )
    assert codes(parts.encode()) == [ReasonCode.TENSOR_SHAPE]


@pytest.mark.parametrize(
    "second",
    [[4, 0, 0], [0, 4, 0], [0, 0, 2], [0, 0, 3], [0, 0, -1], [0, 0, 24]],
    ids=["right-padded", "hole", "cls", "mask", "negative", "beyond the items"],
)
def test_a_probe_that_is_no_history_is_refused(second: list[int]) -> None:
    histories = np.array([[0, 0, 0], second], np.int32)
    parts = make_parts(BundleRecipe()).with_tensors(probe__histories=histories)
    assert codes(parts.encode()) == [ReasonCode.PROBES_INVALID]


def test_an_unknown_item_in_a_probe_is_a_history() -> None:
    histories = np.array([[0, 0, 0], [0, 1, 23]], np.int32)
    parts = make_parts(BundleRecipe()).with_tensors(probe__histories=histories)
    verify_bundle(parts.encode(), backbone=TINY, limits=LIMITS)


def test_probes_without_the_cold_start_are_refused() -> None:
    histories = np.array([[0, 0, 5], [0, 0, 0]], np.int32)
    parts = make_parts(BundleRecipe()).with_tensors(probe__histories=histories)
    assert codes(parts.encode()) == [ReasonCode.PROBES_INVALID]


@pytest.mark.parametrize("columns", [[0, 1, 3], [0, 1, -1], [0, 1, 1]])
def test_probe_columns_that_are_no_outputs_are_refused(columns: list[int]) -> None:
    parts = make_parts(BundleRecipe()).with_tensors(probe__columns=np.array(columns))
    assert codes(parts.encode()) == [ReasonCode.PROBES_INVALID]


def test_a_bundle_for_another_backbone_names_both_fingerprints() -> None:
    other = replace(TINY, fingerprint="f" * 64)
    error = refuse(make_bundle(backbone=other))
    assert [reason.code for reason in error.reasons] == [ReasonCode.BACKBONE_MISMATCH]
    assert "f" * 64 in error.message
    assert TINY.fingerprint in error.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("is_causal", False),
        ("padding", "embedded"),
        ("pad_id", 9),
        ("unk_id", 9),
        ("cls_id", 9),
        ("mask_id", 9),
    ],
)
def test_histories_framed_otherwise_are_refused(field: str, value: object) -> None:
    error = refuse(with_manifest_field(f"input.{field}", value))
    assert [reason.code for reason in error.reasons] == [ReasonCode.INPUT_MISMATCH]
    assert f"input.{field}" in error.message


def test_another_history_length_is_refused() -> None:
    spec = replace(TINY.spec, max_len=5)
    error = refuse(make_bundle(backbone=replace(TINY, spec=spec)))
    assert [reason.code for reason in error.reasons] == [ReasonCode.INPUT_MISMATCH]


def test_a_patch_in_blocks_that_the_backbone_lacks_is_refused() -> None:
    error = refuse(make_bundle(geometry=PatchGeometry("serial1", 2, (1, 2))))
    assert [reason.code for reason in error.reasons] == [ReasonCode.PATCH_OUTSIDE_BACKBONE]
    assert "[2]" in error.message


def test_all_reasons_are_told_together() -> None:
    spec = replace(TINY.spec, max_len=5, channels=6)
    parts = make_parts(BundleRecipe(backbone=replace(TINY, fingerprint="f" * 64, spec=spec)))
    weights = np.full((3, 6), np.nan, np.float32)
    damaged = parts.with_tensors(head__weight=weights).without_tensor("patch.up_bias").encode()
    assert set(codes(damaged[:-1] + b"\x07")) == {
        ReasonCode.CHECKSUM_MISMATCH,
        ReasonCode.TENSOR_NOT_FINITE,
        ReasonCode.TENSOR_MISSING,
        ReasonCode.BACKBONE_MISMATCH,
        ReasonCode.INPUT_MISMATCH,
    }


def test_a_rejection_says_its_code_what_was_found_and_what_to_do() -> None:
    error = refuse(make_bundle(backbone=replace(TINY, fingerprint="f" * 64)))
    assert error.code == "bundle_rejected"
    assert error.category is Category.INCOMPATIBLE
    assert "[backbone_mismatch]" in error.message
    assert "Fine-tune the task again" in error.hint


def test_nobody_but_verification_makes_a_verified_bundle() -> None:
    parts = make_parts(BundleRecipe())
    cost = BundleCost.of(parts.manifest, TINY.spec)
    with pytest.raises(AssertionError, match="only verify_bundle"):
        VerifiedBundle(parts.manifest, parts.tensors, Blob(b""), cost)


def test_a_head_without_a_patch_is_a_bundle() -> None:
    parts = make_parts(BundleRecipe(geometry=PatchGeometry("serial2", 2, ())))
    data = build_bundle(parts.manifest, parts.tensors)
    assert verify_bundle(data, backbone=TINY, limits=LIMITS).patch_bytes == 0
