"""The bundle: one immutable safetensors file with manifest, patch, head, catalog and probes."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from peterrec.patches.bundle.contents import (
    BundleLimits,
    Contents,
    check_size,
    examine,
    read_manifest_of,
)
from peterrec.patches.bundle.header import (
    DTYPES,
    LENGTH_BYTES,
    Array,
    Tensors,
    encode_file,
    read_header,
)
from peterrec.patches.bundle.manifest import Manifest
from peterrec.patches.bundle.signatures import TrustedKeys, check_signatures
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
]

BUNDLE_SUFFIX = ".bundle"


class Catalog:
    """The external item ids that a ranking head's outputs stand for, in order.

    Kept packed (UTF-8 ``bytes`` uint8 [N] and ``offsets`` int64 [K + 1]): a million ids cost
    megabytes, not objects.
    """

    def __init__(self, packed: Array, offsets: Array) -> None:
        self._bytes = np.ascontiguousarray(packed)
        self._offsets = offsets

    @classmethod
    def pack(cls, items: Sequence[str]) -> "Catalog":
        """A catalog of these ids."""
        encoded = [item.encode() for item in items]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(item) for item in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    @classmethod
    def of(cls, tensors: Tensors) -> "Catalog":
        """The catalog among a ranking bundle's tensors, without a copy."""
        return cls(tensors["catalog.bytes"], tensors["catalog.offsets"])

    def tensors(self) -> dict[str, Array]:
        """The two tensors of a bundle."""
        return {"catalog.bytes": self._bytes, "catalog.offsets": self._offsets}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"catalog index {index} outside 0..{len(self) - 1}")
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def index_of(self, external_id: str) -> int | None:
        """The output that stands for an item; None if the catalog lacks it.

        The first call builds an index of the whole catalog (about a second per million items).
        """
        return self._index.get(external_id)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {item: index for index, item in enumerate(self)}


def build_bundle(manifest: Manifest, tensors: Tensors) -> bytes:
    """The bundle's bytes, the same for the same input.

    ``tensors`` by name as ``docs/bundle-format.md`` lists them, dtypes exact. Raises
    BundleRejected, with every reason, if they do not fit the manifest or each other.
    """
    findings = Findings()
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            findings.add(
                ReasonCode.TENSOR_DTYPE,
                f"{name} is {tensor.dtype}; a bundle holds float32, int64, int32 and uint8",
            )
    findings.raise_if_any()
    data = encode_file(manifest.to_json(), tensors)
    open_bundle(data, BundleLimits(max_bytes=len(data), max_header_bytes=len(data)))
    return data


def open_bundle(
    data: bytes, limits: BundleLimits | None = None, trusted_keys: TrustedKeys | None = None
) -> Contents:
    """A bundle that is whole and agrees with itself, for any backbone or none; BundleRejected.

    With trusted keys one of them must have signed it. What is to be served goes through
    verify_bundle instead.
    """
    findings = Findings()
    contents = examine(memoryview(data), limits or BundleLimits(), {}, findings)
    if contents is not None:
        check_signatures(contents, trusted_keys, findings)
    findings.raise_if_any()
    assert contents is not None
    return contents


def read_manifest(source: bytes | Path, limits: BundleLimits | None = None) -> Manifest:
    """The manifest alone, for looking at a bundle; of a file only the header is read.

    Neither the tensors nor the checksum are judged. Raises BundleRejected if it is unreadable.
    """
    limits = limits or BundleLimits()
    findings = Findings()
    view, size = _beginning(source, limits)
    manifest = None
    if check_size(size, limits, findings):
        header = read_header(view, size, limits.max_header_bytes, findings)
        manifest = None if header is None else read_manifest_of(header, findings)
    if manifest is None:
        findings.raise_if_any()
    assert manifest is not None
    return manifest


def _beginning(source: bytes | Path, limits: BundleLimits) -> tuple[memoryview, int]:
    if not isinstance(source, Path):
        return memoryview(source), len(source)
    with source.open("rb") as file:
        length = file.read(LENGTH_BYTES)
        claimed = min(int.from_bytes(length, "little"), limits.max_header_bytes)
        return memoryview(length + file.read(claimed)), source.stat().st_size
