"""Verification: the only way from untrusted bytes to a bundle that may enter a slot."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from peterrec.model.spec import BackboneSpec
from peterrec.patches.bundle.bundle import BundleLimits, Catalog
from peterrec.patches.bundle.contents import Contents, check_size, examine
from peterrec.patches.bundle.header import Array
from peterrec.patches.bundle.manifest import Manifest, ManifestInput
from peterrec.patches.bundle.signatures import TrustedKeys, check_signatures
from peterrec.patches.errors import Findings, ReasonCode
from peterrec.patches.identity import Digest, digest_of, format_digest

__all__ = ["BackboneIdentity", "BundleLimits", "TrustedKeys", "VerifiedBundle", "verify_bundle"]

_PROOF = object()


@dataclass(frozen=True, slots=True)
class BackboneIdentity:
    """The backbone that a server runs; ``fingerprint`` covers architecture, weights and items."""

    fingerprint: str
    spec: BackboneSpec


@dataclass(frozen=True, eq=False)
class VerifiedBundle:
    """A bundle that passed every check against one backbone. Only verify_bundle makes one.

    ``tensors`` are read-only views into the file's bytes, which they keep alive. ``signed_by``
    are the ids of the trusted keys that signed it; empty if no signature was demanded.
    """

    manifest: Manifest
    tensors: Mapping[str, Array]
    digest: Digest
    size_bytes: int
    signed_by: tuple[str, ...] = ()
    proof: InitVar[object] = None

    def __post_init__(self, proof: object) -> None:
        assert proof is _PROOF, "only verify_bundle makes a VerifiedBundle"

    @property
    def patch_bytes(self) -> int:
        """What the patch costs in float32."""
        return self._bytes_of("patch.")

    @property
    def head_bytes(self) -> int:
        """What the head costs in float32."""
        return self._bytes_of("head.")

    @cached_property
    def catalog(self) -> Catalog | None:
        """The items that the outputs stand for; None unless the head is a ranking."""
        return Catalog.of(self.tensors) if self.manifest.described_kind.has_catalog else None

    def _bytes_of(self, prefix: str) -> int:
        return sum(t.nbytes for name, t in self.tensors.items() if name.startswith(prefix))


def verify_bundle(
    data: bytes | memoryview | Path,
    *,
    backbone: BackboneIdentity,
    limits: BundleLimits,
    expected_digest: Digest | None = None,
    trusted_keys: TrustedKeys | None = None,
) -> VerifiedBundle:
    """Check a bundle against the backbone that is to run it; BundleRejected has every reason.

    With ``trusted_keys`` one of them must have signed it, and none of its signatures by them may
    be wrong.

    Blocks: hashes and scans the file twice, about two seconds per gigabyte. Runs no code from the
    file and allocates nothing by its claims. The probes' numbers are the device's to check.
    """
    findings = Findings()
    view = _read(data, limits, findings)
    digest = digest_of(view)
    _check_digest(digest, expected_digest, findings)
    contents = examine(view, limits, {backbone.fingerprint: backbone.spec.channels}, findings)
    signed_by: tuple[str, ...] = ()
    if contents is not None:
        _check_backbone(contents, backbone, findings)
        signed_by = check_signatures(contents, trusted_keys, findings)
    findings.raise_if_any()
    assert contents is not None
    return VerifiedBundle(
        manifest=contents.manifest,
        tensors=MappingProxyType(dict(contents.tensors)),
        digest=digest,
        size_bytes=len(view),
        signed_by=signed_by,
        proof=_PROOF,
    )


def _read(data: bytes | memoryview | Path, limits: BundleLimits, findings: Findings) -> memoryview:
    """The bytes to judge, which nobody can change afterwards."""
    if isinstance(data, Path):
        check_size(data.stat().st_size, limits, findings)
        findings.raise_if_any()
        with data.open("rb") as file:
            return memoryview(file.read(limits.max_bytes + 1))
    view = memoryview(data).cast("B")
    check_size(len(view), limits, findings)
    findings.raise_if_any()
    return view if view.readonly else memoryview(bytes(view))


def _check_digest(found: Digest, expected: Digest | None, findings: Findings) -> None:
    if expected is not None and found != expected:
        findings.add(
            ReasonCode.DIGEST_MISMATCH,
            f"the bundle's digest is {format_digest(found)}, expected {format_digest(expected)}",
            "Fetch the bundle again.",
        )


def _check_backbone(contents: Contents, backbone: BackboneIdentity, findings: Findings) -> None:
    manifest, spec = contents.manifest, backbone.spec
    _check_input(manifest.input, ManifestInput.of(spec), findings)
    outside = [block for block in manifest.patch.blocks if block >= len(spec.dilations)]
    if outside:
        findings.add(
            ReasonCode.PATCH_OUTSIDE_BACKBONE,
            f"the patch sits in blocks {outside}, the backbone has 0 to {len(spec.dilations) - 1}",
        )
    if manifest.backbone != backbone.fingerprint:
        findings.add(
            ReasonCode.BACKBONE_MISMATCH,
            f"the bundle is for backbone {manifest.backbone}, "
            f"this server runs {backbone.fingerprint}",
            "Fine-tune the task again on the backbone that is served.",
        )
        return
    histories = contents.tensors.get("probe.histories")
    if histories is not None and (histories >= spec.token_count).any():
        findings.add(
            ReasonCode.PROBES_INVALID,
            f"probe.histories: holds tokens from {spec.token_count} on, which no item has",
        )


def _check_input(found: ManifestInput, serving: ManifestInput, findings: Findings) -> None:
    for name in ManifestInput.model_fields:
        theirs, ours = getattr(found, name), getattr(serving, name)
        if theirs != ours:
            findings.add(
                ReasonCode.INPUT_MISMATCH,
                f"input.{name} is {theirs!r}, the backbone's is {ours!r}",
                "Fine-tune the task with the backbone's own input settings.",
            )
