"""The bundle, one immutable safetensors file: building it, signing it and opening it."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from peterrec.model.disk import refusals
from peterrec.patches.bundle.attributes import Attributes, attributes_of
from peterrec.patches.bundle.contents import Contents, check_tensors, manifest_of, read_contents
from peterrec.patches.bundle.format import BundleLimits
from peterrec.patches.bundle.header import (
    DTYPES,
    LENGTH_BYTES,
    Array,
    Tensors,
    check_size,
    encode_file,
    read_header,
)
from peterrec.patches.bundle.manifest import Manifest
from peterrec.patches.bundle.signatures import (
    SigningKey,
    TrustedKeys,
    check_signatures,
    content_digest,
    format_signatures,
    signatures_of,
    signed_message,
)
from peterrec.patches.bundle.texts import PackedTexts
from peterrec.patches.errors import Findings, ReasonCode
from peterrec.patches.identity import Digest, digest_of, format_digest

__all__ = [
    "BUNDLE_SUFFIX",
    "BundleLimits",
    "Catalog",
    "Contents",
    "Digest",
    "Manifest",
    "build_bundle",
    "digest_of",
    "format_digest",
    "open_bundle",
    "read_manifest",
    "sign_bundle",
]

BUNDLE_SUFFIX = ".bundle"


class Catalog(PackedTexts):
    """The external item ids of a ranking head's outputs, in the order of the outputs.

    ``titles`` are the items' display names, empty where there is none, and ``attributes`` what they
    may be filtered by, if the bundle has them.
    """

    titles: PackedTexts | None = None
    attributes: Attributes = MappingProxyType({})

    @classmethod
    def of(cls, tensors: Tensors) -> "Catalog":
        """Take the ids from a ranking bundle's tensors, without a copy."""
        return cls.named(tensors, "catalog")

    @classmethod
    def of_bundle(cls, manifest: Manifest, tensors: Tensors) -> "Catalog":
        """Take the ids, titles and attributes from a ranking bundle, without a copy."""
        catalog = cls.of(tensors)
        if manifest.head.title_bytes:
            catalog.titles = PackedTexts.named(tensors, "title")
        catalog.attributes = attributes_of(manifest, tensors)
        return catalog

    def tensors(self) -> dict[str, Array]:
        """Return the two tensors that a bundle stores of the ids."""
        return self.tensors_named("catalog")

    def index_of(self, external_id: str) -> int | None:
        """Return the output that stands for an item; None if the catalog does not have it.

        The first call builds an index of the whole catalog, which takes about a second per million
        items.
        """
        return self._index.get(external_id)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {item: index for index, item in enumerate(self)}


def build_bundle(manifest: Manifest, tensors: Tensors) -> bytes:
    """Return a bundle's bytes; equal input gives equal bytes.

    ``tensors`` has the names and exact dtypes that ``docs/bundle-format.md`` lists. Raises
    BundleRejected, with every reason, if they do not fit the manifest or each other.
    """
    findings = Findings()
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            findings.add(
                ReasonCode.TENSOR_DTYPE,
                f"{name} is {tensor.dtype}; a bundle holds float32, float64, int64, int32, uint8 "
                "and int8",
            )
    findings.raise_if_any()
    data = encode_file(manifest.to_json(), tensors)
    open_bundle(data, BundleLimits(max_bytes=len(data), max_header_bytes=len(data)))
    return data


def open_bundle(
    data: bytes, limits: BundleLimits | None = None, trusted_keys: TrustedKeys | None = None
) -> Contents:
    """Open a bundle that is complete and consistent, for any backbone; BundleRejected otherwise.

    With trusted keys, one of them must have signed it. A bundle that will be served must pass
    verify_bundle instead.
    """
    limits = limits or BundleLimits()
    findings = Findings()
    check_size(len(data), limits)
    contents = read_contents(memoryview(data), limits, findings)
    check_tensors(contents, None, findings)
    check_signatures(contents, trusted_keys, findings)
    findings.raise_if_any()
    return contents


def sign_bundle(
    data: bytes, keys: Sequence[SigningKey], limits: BundleLimits | None = None
) -> bytes:
    """Add signatures by these keys; existing ones stay, except those by the same keys.

    The result has another version id but the same content digest. BundleRejected if the bundle is
    damaged.
    """
    contents = open_bundle(data, limits)
    present = signatures_of(contents, Findings()) or {}
    message = signed_message(content_digest(contents))
    made = {key.key_id: key.private.sign(message) for key in keys}
    signatures = format_signatures({**present, **made})
    signed = encode_file(contents.header.metadata["manifest"], contents.tensors, signatures)
    open_bundle(signed, limits)
    return signed


def read_manifest(source: bytes | Path, limits: BundleLimits | None = None) -> Manifest:
    """Read the manifest alone; of a file, only the header is read.

    Neither the tensors nor the checksum are checked. BundleRejected if it is unreadable.
    """
    limits = limits or BundleLimits()
    findings = Findings()
    view, size = _beginning(source, limits)
    check_size(size, limits)
    header = read_header(view, size, limits.max_header_bytes, findings)
    manifest = manifest_of(header, findings)
    if manifest is None:
        findings.raise_if_any()
    assert manifest is not None
    return manifest


def _beginning(source: bytes | Path, limits: BundleLimits) -> tuple[memoryview, int]:
    if not isinstance(source, Path):
        return memoryview(source), len(source)
    with refusals(source, doing="read"), source.open("rb") as file:
        length = file.read(LENGTH_BYTES)
        claimed = min(int.from_bytes(length, "little"), limits.max_header_bytes)
        return memoryview(length + file.read(claimed)), source.stat().st_size
