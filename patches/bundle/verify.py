"""Verification: the only way from untrusted bytes to a bundle that may enter a slot."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import InitVar, dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from peterrec.model.disk import refusals
from peterrec.model.network.item_gaps import GapsInvalid
from peterrec.model.spec import BackboneSpec
from peterrec.patches.bundle.bundle import Catalog
from peterrec.patches.bundle.contents import Contents, check_tensors, read_contents
from peterrec.patches.bundle.cost import BundleCost, check_cost
from peterrec.patches.bundle.format import BundleLimits
from peterrec.patches.bundle.header import Array, check_size
from peterrec.patches.bundle.manifest import Manifest, ManifestInput
from peterrec.patches.bundle.packed_table import listed_items
from peterrec.patches.bundle.signatures import TrustedKeys, check_signatures
from peterrec.patches.bundle.texts import PackedTexts
from peterrec.patches.errors import Findings, ReasonCode
from peterrec.patches.identity import Blob, Digest, format_digest

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

    ``tensors`` are read-only views into the bytes of ``blob``. ``signed_by`` has the ids of the
    trusted keys that signed it; it is empty if no signature was demanded. ``cost`` is what it costs
    on that backbone.
    """

    manifest: Manifest
    tensors: Mapping[str, Array]
    blob: Blob
    cost: BundleCost
    signed_by: tuple[str, ...] = ()
    proof: InitVar[object] = None

    def __post_init__(self, proof: object) -> None:
        assert proof is _PROOF, "only verify_bundle makes a VerifiedBundle"

    @property
    def digest(self) -> Digest:
        """The version id."""
        return self.blob.digest

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return len(self.blob.data)

    @property
    def patch_bytes(self) -> int:
        """The size of the patch in float32."""
        return self._bytes_of("patch.")

    @property
    def head_bytes(self) -> int:
        """The size of the head in float32."""
        return self._bytes_of("head.")

    @property
    def table_bytes(self) -> int:
        """The size of the item table in the file; 0 without one."""
        return self._bytes_of("table.")

    @cached_property
    def catalog(self) -> Catalog | None:
        """The items that the outputs stand for; None unless the head is a ranking."""
        if not self.manifest.described_kind.has_catalog:
            return None
        return Catalog.of_bundle(self.manifest, self.tensors)

    @property
    def titles(self) -> PackedTexts | None:
        """The display names of the outputs; None if there are none."""
        has_titles = self.manifest.head.title_bytes > 0
        return PackedTexts.named(self.tensors, "title") if has_titles else None

    def _bytes_of(self, prefix: str) -> int:
        return sum(t.nbytes for name, t in self.tensors.items() if name.startswith(prefix))


def verify_bundle(
    source: Blob | bytes | memoryview | Path,
    *,
    backbone: BackboneIdentity,
    limits: BundleLimits,
    expected_digest: Digest | None = None,
    trusted_keys: TrustedKeys | None = None,
    others: Sequence[BackboneIdentity] = (),
) -> VerifiedBundle:
    """Check a bundle against the backbone that will run it; BundleRejected has every reason.

    With ``others``, it may be for one of these instead.

    With ``trusted_keys``, one of them must have signed the bundle, and every signature by one of
    them must be right.

    Blocks: reads the source once, hashes it for the version id (unless it is a Blob) and for the
    format's checksum, and scans the tensors. Together this takes about two seconds per gigabyte.
    Runs no code from the file and allocates nothing that the file only claims to need. The device
    compares the probes' logits later.
    """
    findings = Findings()
    blob = _blob_of(source, limits)
    _check_digest(blob.digest, expected_digest)
    contents = read_contents(memoryview(blob.data), limits, findings)
    served = {each.fingerprint: each for each in (backbone, *others)}
    backbone = served.get(contents.manifest.backbone, backbone)
    is_ours = contents.manifest.backbone == backbone.fingerprint
    check_tensors(contents, backbone.spec.channels if is_ours else None, findings)
    _check_backbone(contents, backbone, findings, served)
    if is_ours:
        check_cost(contents.manifest, backbone.spec, limits, findings)
    signed_by = check_signatures(contents, trusted_keys, findings)
    findings.raise_if_any()
    return VerifiedBundle(
        manifest=contents.manifest,
        tensors=MappingProxyType(dict(contents.tensors)),
        blob=blob,
        cost=BundleCost.of(contents.manifest, backbone.spec),
        signed_by=signed_by,
        proof=_PROOF,
    )


def _blob_of(source: Blob | bytes | memoryview | Path, limits: BundleLimits) -> Blob:
    """Read and hash the bytes, as a copy of our own if somebody could change them afterwards."""
    if isinstance(source, Blob):
        check_size(len(source.data), limits)
        return source
    if isinstance(source, Path):
        with refusals(source, doing="read"), source.open("rb") as file:
            check_size(os.fstat(file.fileno()).st_size, limits)
            data = file.read(limits.max_bytes + 1)
    else:
        check_size(memoryview(source).nbytes, limits)
        data = bytes(source)  # the same object if it is bytes already
    check_size(len(data), limits)
    return Blob(data)


def _check_digest(found: Digest, expected: Digest | None) -> None:
    findings = Findings()
    if expected is not None and found != expected:
        findings.add(
            ReasonCode.DIGEST_MISMATCH,
            f"the bundle's digest is {format_digest(found)}, expected {format_digest(expected)}",
            "Fetch the bundle again.",
        )
    findings.raise_if_any()


def _check_backbone(
    contents: Contents, backbone: BackboneIdentity, findings: Findings, served: Iterable[str]
) -> None:
    manifest, spec = contents.manifest, backbone.spec
    _check_input(manifest.input, ManifestInput.of(spec), findings)
    outside = [block for block in manifest.patch.blocks if block >= len(spec.dilations)]
    if outside:
        findings.add(
            ReasonCode.PATCH_OUTSIDE_BACKBONE,
            f"the patch is in blocks {outside}, the backbone has 0 to {len(spec.dilations) - 1}",
        )
    if manifest.backbone != backbone.fingerprint:
        findings.add(
            ReasonCode.BACKBONE_MISMATCH,
            f"the bundle is for backbone {manifest.backbone}, "
            f"this server runs {' and '.join(served)}",
            "Fine-tune the task again on the backbone that is served.",
        )
        return
    for name, code, last in _last_tokens(contents):
        if last >= spec.token_count:
            findings.add(
                code, f"{name}: has tokens from {spec.token_count} on, which stand for no item"
            )


def _last_tokens(contents: Contents) -> Iterator[tuple[str, ReasonCode, int]]:
    """The largest token of each tensor that has tokens, as far as it can be read."""
    tensors, table = contents.tensors, contents.manifest.table
    histories = tensors.get("probe.histories")
    if histories is not None and histories.size:
        yield "probe.histories", ReasonCode.PROBES_INVALID, int(histories.max())
    if table is None or "table.items" not in tensors:
        return
    with suppress(GapsInvalid):
        items = listed_items(tensors, table.spec())
        yield "table.items", ReasonCode.TABLE_INVALID, int(items.max(initial=0))


def _check_input(found: ManifestInput, serving: ManifestInput, findings: Findings) -> None:
    for name in ManifestInput.model_fields:
        theirs, ours = getattr(found, name), getattr(serving, name)
        if theirs != ours:
            findings.add(
                ReasonCode.INPUT_MISMATCH,
                f"input.{name} is {theirs!r}, the backbone's is {ours!r}",
                "Fine-tune the task with the backbone's own input settings.",
            )
