"""The specification says what the code does, and its writer is one."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peterrec.model.network.item_table import ItemTable
from peterrec.model.spec import HeadKind, TableSpec
from peterrec.patches.bundle.bundle import build_bundle, digest_of, format_digest, sign_bundle
from peterrec.patches.bundle.format import MAX_KEYS, BundleLimits
from peterrec.patches.bundle.manifest import Manifest, ManifestTable
from peterrec.patches.bundle.packed_table import unpack_codes
from peterrec.patches.bundle.signatures import SigningKey
from peterrec.patches.bundle.verify import verify_bundle
from peterrec.patches.errors import MAX_REASONS, ReasonCode
from peterrec.patches.registry.scripts import KEY_NAMES
from peterrec.patches.registry.traffic import MAX_CANARIES, MAX_SHADOWS, MAX_WEIGHT
from peterrec.service.predict.kinds.ranking import OVERLAP_AT
from tests.patches.bundles import LIMITS, TINY, BundleRecipe, make_parts
from tests.patches.script_limits import EVENTS_KEPT, MAX_CHANGES, STATES_KEPT

DOCS = Path(__file__).parent.parent.parent / "docs"
FORMAT = (DOCS / "bundle-format.md").read_text(encoding="utf-8")
REGISTRY = (DOCS / "registry.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def published() -> SimpleNamespace:
    """The document's own code."""
    code = "".join(re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL))
    names: dict[str, object] = {}
    exec(code, names)
    return SimpleNamespace(**names)


@pytest.mark.parametrize("kind", ["classification", "tags", "ranking", "value"])
def test_the_documents_writer_writes_what_we_write(
    published: SimpleNamespace, kind: HeadKind, tmp_path: Path
) -> None:
    parts = make_parts(BundleRecipe(kind=kind))
    manifest = json.loads(parts.manifest.model_dump_json(by_alias=True))
    version = published.write_bundle(tmp_path / "x.bundle", manifest, parts.tensors)
    written = (tmp_path / "x.bundle").read_bytes()
    assert written == build_bundle(parts.manifest, parts.tensors)
    assert version == format_digest(digest_of(written))
    verify_bundle(written, backbone=TINY, limits=LIMITS)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_documents_writer_writes_an_item_table_as_we_do(
    published: SimpleNamespace, bits: int, tmp_path: Path
) -> None:
    parts = make_parts(BundleRecipe(table=TableSpec(9, bits)))
    manifest = json.loads(parts.manifest.to_json())
    published.write_bundle(tmp_path / "x", manifest, parts.tensors)
    assert (tmp_path / "x").read_bytes() == build_bundle(parts.manifest, parts.tensors)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_documents_item_table_is_the_plain_one(bits: int) -> None:
    parts = make_parts(BundleRecipe(table=TableSpec(9, bits), outputs=5))
    assert parts.manifest.table is not None
    spec, tensors = parts.manifest.table.spec(), parts.tensors
    codes = unpack_codes(tensors["table.weight"], 5, spec)
    items = list(range(4, 13))  # no gaps
    table = ItemTable(
        spec,
        torch.tensor(items),
        torch.from_numpy(codes.copy()),
        torch.from_numpy(tensors["table.scale"]),
    )
    history = [5, 5, 1, 12, 20, 7, 5]
    counted = sorted({token for token in history if token >= 4})
    rows = [items.index(token) for token in counted if token in items]
    expected = len(counted) ** -0.5 * tensors["table.scale"] * codes[rows].sum(0)
    np.testing.assert_allclose(table.logits([history])[0].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["classification", "tags", "ranking", "value"])
def test_the_documents_signer_signs_what_we_sign(
    published: SimpleNamespace, kind: HeadKind, tmp_path: Path
) -> None:
    parts = make_parts(BundleRecipe(kind=kind))
    manifest = json.loads(parts.manifest.model_dump_json(by_alias=True))
    keys = [SigningKey(Ed25519PrivateKey.from_private_bytes(seed)) for seed in published.seeds]
    signatures = [published.sign(key.private, manifest, parts.tensors) for key in keys]
    published.write_bundle(tmp_path / "x", manifest, parts.tensors, signatures)
    plain = build_bundle(parts.manifest, parts.tensors)
    assert (tmp_path / "x").read_bytes() == sign_bundle(plain, keys)


def test_the_test_vectors_are_what_the_document_s_code_and_ours_give(
    published: SimpleNamespace, tmp_path: Path
) -> None:
    manifest, tensors = published.manifest, published.tensors
    private = [Ed25519PrivateKey.from_private_bytes(seed) for seed in published.seeds]
    first, second = (published.sign(key, manifest, tensors) for key in private)
    plain = published.write_bundle(tmp_path / "x", manifest, tensors)
    data = (tmp_path / "x").read_bytes()
    found = [
        str(len(data)),
        plain,
        f"sha256:{published.content_digest(manifest, tensors)}",
        first["key"],
        first["signature"],
        second["key"],
        second["signature"],
        published.write_bundle(tmp_path / "x", manifest, tensors, [first]),
        published.write_bundle(tmp_path / "x", manifest, tensors, [second, first]),
    ]
    table = FORMAT.partition("## Test vectors")[2].rpartition("```")[2]
    assert re.findall(r"^\|.*\| `(.+)` \|$", table, re.MULTILINE) == found
    signed = sign_bundle(data, [SigningKey(key) for key in private])
    assert [format_digest(digest_of(b)) for b in (data, signed)] == [found[1], found[-1]]


def test_every_reason_for_a_refusal_is_documented() -> None:
    table = FORMAT.partition("## Refusals")[2].partition("##")[0]
    assert set(re.findall(r"`([a-z_]+)`", table)) == set(ReasonCode)


def test_every_field_of_the_manifest_is_documented() -> None:
    fields = {field.alias or name for name, field in Manifest.model_fields.items()}
    for part in ("input", "patch", "head", "probes", "provenance"):
        model = Manifest.model_fields[part].annotation
        fields |= set(model.model_fields) if model is not None else set()
    fields |= set(ManifestTable.model_fields)
    documented = set(re.findall(r"`([a-z_]+)`", FORMAT))
    assert fields <= documented


def test_the_documented_limits_are_the_code_s() -> None:
    limits = BundleLimits()
    assert f"{limits.max_bytes >> 30} GiB" in FORMAT
    assert f"{limits.max_header_bytes >> 20} MiB" in FORMAT
    assert f"at most {MAX_KEYS} keys" in FORMAT
    assert f"over {MAX_REASONS} reasons" in FORMAT


def test_the_registry_s_documented_limits_are_the_code_s() -> None:
    assert f"at most {STATES_KEPT} |" in REGISTRY
    assert f"{EVENTS_KEPT:,}".replace(",", " ") in REGISTRY
    assert f"over {MAX_CHANGES} changes" in REGISTRY
    assert f"up to {MAX_CANARIES} canaries" in REGISTRY
    assert f"Up to {MAX_SHADOWS} shadows" in REGISTRY
    assert f"0 to {MAX_WEIGHT:,}".replace(",", " ") in REGISTRY
    assert f"the\n  {OVERLAP_AT} best items" in REGISTRY


def test_every_key_of_the_registry_is_documented() -> None:
    documented = set(re.findall(r"^\| `\{P\}:([a-z_]+)", REGISTRY, re.MULTILINE))
    apart = {"import", "acknowledged", "replicas", "presences", "shares"}
    of_outcomes = {"feedback_secret", "told_newest", "told_older", "hits"}
    of_outcomes |= {"answered_newest", "answered_older"}
    assert documented == {*KEY_NAMES, *apart, *of_outcomes}
