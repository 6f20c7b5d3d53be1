"""Signatures: who signed is known, what was signed cannot change, keys can."""

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from safetensors.numpy import load as load_safetensors

from peterrec.model.errors import PathMissing, PathUnusable
from peterrec.patches.bundle.bundle import digest_of, open_bundle, sign_bundle
from peterrec.patches.bundle.header import encode_file
from peterrec.patches.bundle.signatures import (
    SigningKey,
    TrustedKeys,
    content_digest,
    format_signatures,
    key_paths,
)
from peterrec.patches.bundle.verify import VerifiedBundle, verify_bundle
from peterrec.patches.errors import BundleRejected, KeyFileExists, KeyFileInvalid, ReasonCode
from peterrec.patches.registry.records import VersionSummary
from tests.patches.bundles import LIMITS, TINY, BundleRecipe, make_bundle, make_parts

OLD, NEW, STRANGER = (SigningKey.generate() for _ in range(3))


def trust(*keys: SigningKey) -> TrustedKeys:
    return TrustedKeys({key.key_id: key.private.public_key() for key in keys})


def verify(data: bytes, *keys: SigningKey) -> VerifiedBundle:
    return verify_bundle(data, backbone=TINY, limits=LIMITS, trusted_keys=trust(*keys))


def codes(data: bytes, *keys: SigningKey) -> list[ReasonCode | str]:
    with pytest.raises(BundleRejected) as refused:
        verify(data, *keys)
    return [reason.code for reason in refused.value.reasons]


def with_signatures(text: str) -> bytes:
    parts = make_parts(BundleRecipe())
    return encode_file(parts.manifest.to_json(), parts.tensors, text)


def resigned(data: bytes, *, like: bytes) -> bytes:
    """``data`` under the signatures of another bundle, its checksum right."""
    contents, other = open_bundle(data), open_bundle(like)
    signatures = other.header.metadata["signatures"]
    return encode_file(contents.header.metadata["manifest"], contents.tensors, signatures)


def test_a_bundle_signed_by_a_trusted_key_is_accepted_and_names_it() -> None:
    bundle = verify(sign_bundle(make_bundle(), [OLD]), OLD, NEW)
    assert bundle.signed_by == (OLD.key_id,)
    assert VersionSummary.of(bundle).signed_by == (OLD.key_id,)


def test_without_trusted_keys_no_signature_is_demanded() -> None:
    for data in (make_bundle(), sign_bundle(make_bundle(), [OLD])):
        bundle = verify_bundle(data, backbone=TINY, limits=LIMITS)
        assert bundle.signed_by == ()


def test_an_unsigned_bundle_is_refused_where_a_signature_is_demanded() -> None:
    assert codes(make_bundle(), OLD) == [ReasonCode.SIGNATURE_MISSING]


def test_a_bundle_signed_by_a_stranger_alone_is_untrusted() -> None:
    assert codes(sign_bundle(make_bundle(), [STRANGER]), OLD) == [ReasonCode.SIGNATURE_UNTRUSTED]


def test_an_unknown_signature_in_addition_to_a_trusted_one_does_no_harm() -> None:
    bundle = verify(sign_bundle(make_bundle(), [STRANGER, OLD]), OLD)
    assert bundle.signed_by == (OLD.key_id,)


def test_no_server_key_at_all_refuses_everything() -> None:
    assert codes(sign_bundle(make_bundle(), [OLD])) == [ReasonCode.SIGNATURE_UNTRUSTED]


@pytest.mark.parametrize(
    "other",
    [make_bundle(name="age"), make_bundle(seed=1), make_bundle(labels=("x", "y", "z"))],
    ids=["manifest", "weights", "labels"],
)
def test_a_signature_does_not_fit_another_content(other: bytes) -> None:
    forged = resigned(other, like=sign_bundle(make_bundle(), [OLD]))
    assert codes(forged, OLD) == [ReasonCode.SIGNATURE_INVALID]


def test_tensors_that_change_places_spoil_the_signature() -> None:
    parts = make_parts(BundleRecipe())
    tensors = parts.tensors
    swapped = {"patch.down": tensors["patch.down"], "patch.up": tensors["patch.up"]}
    swapped["patch.down"] = tensors["patch.up"].reshape(swapped["patch.down"].shape)
    swapped["patch.up"] = tensors["patch.down"].reshape(swapped["patch.up"].shape)
    changed = replace(parts, tensors=tensors | swapped).encode()
    assert codes(resigned(changed, like=sign_bundle(parts.encode(), [OLD])), OLD) == [
        ReasonCode.SIGNATURE_INVALID
    ]


def test_one_wrong_signature_by_a_trusted_key_is_not_made_good_by_another() -> None:
    forged = resigned(make_bundle(seed=1), like=sign_bundle(make_bundle(), [OLD]))
    assert codes(sign_bundle(forged, [NEW]), OLD, NEW) == [ReasonCode.SIGNATURE_INVALID]


def test_keys_rotate_without_a_gap() -> None:
    old_only = sign_bundle(make_bundle(), [OLD])
    both = sign_bundle(old_only, [NEW])
    for servers_trust in ((OLD,), (OLD, NEW), (NEW,)):
        assert verify(both, *servers_trust)
    assert verify(old_only, OLD, NEW)
    assert codes(old_only, NEW) == [ReasonCode.SIGNATURE_UNTRUSTED]


def test_signing_makes_another_version_of_the_same_content() -> None:
    plain = make_bundle("ranking")
    signed = sign_bundle(plain, [OLD])
    assert digest_of(signed) != digest_of(plain)
    assert content_digest(open_bundle(signed)) == content_digest(open_bundle(plain))


def test_signing_again_with_the_same_key_changes_nothing() -> None:
    signed = sign_bundle(make_bundle(), [OLD, NEW])
    assert sign_bundle(signed, [NEW]) == signed
    assert sign_bundle(sign_bundle(make_bundle(), [NEW]), [OLD]) == signed


def test_a_signed_bundle_opens_with_the_safetensors_library() -> None:
    parts = make_parts(BundleRecipe(kind="ranking"))
    opened = load_safetensors(sign_bundle(parts.encode(), [OLD]))
    assert opened.keys() == parts.tensors.keys()
    assert all((opened[name] == tensor).all() for name, tensor in parts.tensors.items())


def test_every_flipped_byte_of_a_signed_bundle_is_found() -> None:
    data = sign_bundle(make_bundle(), [OLD])
    for at in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[at] ^= 0x01
        assert codes(bytes(damaged), OLD)


def test_a_damaged_bundle_is_not_signed() -> None:
    with pytest.raises(BundleRejected):
        sign_bundle(make_bundle()[:-1], [OLD])


GOOD = {"key": "0" * 64, "signature": "0" * 128}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "[1]",
        "[" * 5000,
        json.dumps([GOOD, GOOD]),
        json.dumps([GOOD | {"more": 1}]),
        json.dumps([GOOD | {"key": "F" * 64}]),
        json.dumps([GOOD | {"key": 1}]),
        json.dumps([GOOD | {"signature": "0" * 126}]),
        json.dumps([GOOD | {"key": f"{number:064x}"} for number in range(17)]),
        '[{"key":1,"key":2}]',
    ],
)
def test_signatures_that_cannot_be_read_are_refused_by_every_server(text: str) -> None:
    with pytest.raises(BundleRejected) as refused:
        verify_bundle(with_signatures(text), backbone=TINY, limits=LIMITS)
    assert [reason.code for reason in refused.value.reasons] == [ReasonCode.SIGNATURE_INVALID]
    assert codes(with_signatures(text), OLD) == [ReasonCode.SIGNATURE_INVALID]


def test_a_signature_of_zeros_by_a_trusted_key_is_invalid() -> None:
    text = format_signatures({OLD.key_id: bytes(64)})
    assert codes(with_signatures(text), OLD) == [ReasonCode.SIGNATURE_INVALID]


def test_a_missing_signature_is_reported_with_the_other_reasons() -> None:
    data = make_parts(BundleRecipe()).without_tensor("head.bias").encode()
    assert codes(data, OLD) == [ReasonCode.TENSOR_MISSING, ReasonCode.SIGNATURE_MISSING]


def test_a_key_pair_is_written_and_read_back(tmp_path: Path) -> None:
    private, public = key_paths(tmp_path / "v1.2")
    OLD.write(private, public)
    assert (private.name, public.name) == ("v1.2.key", "v1.2.pub")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert SigningKey.read(private).key_id == OLD.key_id
    assert list(TrustedKeys.read([public]).keys) == [OLD.key_id]


def test_a_key_is_never_written_over_another(tmp_path: Path) -> None:
    private, public = key_paths(tmp_path / "x")
    public.write_text("precious")
    with pytest.raises(KeyFileExists, match=r"x\.pub"):
        OLD.write(private, public)
    assert not private.exists()


def test_trusted_keys_come_from_files_with_several_and_from_folders(tmp_path: Path) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    OLD.write(tmp_path / "old.key", folder / "old.pub")
    NEW.write(tmp_path / "new.key", folder / "new.pub")
    (folder / "README").write_text("not a key")
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(path.read_bytes() for path in folder.glob("*.pub")))
    for source in (folder, both):
        assert TrustedKeys.read([source]).keys.keys() == {OLD.key_id, NEW.key_id}


def test_a_file_without_a_public_ed25519_key_is_no_trusted_key(tmp_path: Path) -> None:
    OLD.write(tmp_path / "private.pem", tmp_path / "old.pub")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").write_text("-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----")
    for name in ("private.pem", "empty", "broken"):
        with pytest.raises(KeyFileInvalid):
            TrustedKeys.read([tmp_path / name])
    with pytest.raises(PathMissing):
        TrustedKeys.read([tmp_path / "nowhere"])


def test_a_file_without_a_private_ed25519_key_does_not_sign(tmp_path: Path) -> None:
    OLD.write(tmp_path / "old.key", tmp_path / "old.pub")
    other = generate_private_key(SECP256R1())
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "other").write_bytes(pem)
    for name in ("old.pub", "other"):
        with pytest.raises(KeyFileInvalid):
            SigningKey.read(tmp_path / name)
    with pytest.raises(PathMissing):
        SigningKey.read(tmp_path / "nowhere")


def test_half_a_pair_of_keys_is_never_left(tmp_path: Path) -> None:
    (tmp_path / "a.pub").mkdir()
    with pytest.raises(PathUnusable):
        OLD.write(tmp_path / "a.key", tmp_path / "a.pub")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pub"]
