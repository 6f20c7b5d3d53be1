"""Bytes whose digest was computed once."""

import dataclasses

import pytest

from peterrec.patches.bundle.verify import verify_bundle
from peterrec.patches.identity import Blob, digest_of
from tests.patches.bundles import LIMITS, TINY, make_bundle


def test_a_blob_has_the_digest_of_its_bytes_and_no_other() -> None:
    blob = Blob(b"bytes")
    assert blob.digest == digest_of(b"bytes")
    with pytest.raises(TypeError):
        Blob(b"bytes", digest_of(b"others"))  # type: ignore[call-arg]  # that is the point
    with pytest.raises(dataclasses.FrozenInstanceError):
        blob.data = b"others"  # type: ignore[misc]  # that is the point


def test_verification_hashes_no_blob_again_and_passes_it_on() -> None:
    blob = Blob(make_bundle())
    bundle = verify_bundle(blob, backbone=TINY, limits=LIMITS)
    assert bundle.blob is blob
    assert bundle.digest is blob.digest


def test_a_verified_bundle_carries_the_very_bytes_that_were_verified() -> None:
    data = make_bundle()
    assert verify_bundle(data, backbone=TINY, limits=LIMITS).blob.data is data
