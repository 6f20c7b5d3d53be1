"""The outputs of registered versions, read from their stored bundles without the weights."""

import asyncio
from pathlib import Path
from typing import Protocol, Self

from peterrec.patches.bundle.contents import manifest_of
from peterrec.patches.bundle.format import BundleLimits
from peterrec.patches.bundle.header import LENGTH_BYTES, Header, read_header, tensor_array
from peterrec.patches.bundle.outputs import Outputs
from peterrec.patches.errors import Findings


class Reader(Protocol):
    """Gives parts of a bundle, such as a blob in the registry or a file."""

    @property
    def size_bytes(self) -> int:
        """The size of the whole bundle."""

    async def read(self, begin: int, end: int) -> bytes:
        """Return the bytes from ``begin`` to ``end``."""


class FileReader:
    """Gives parts of a bundle file, which threads read."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self.size_bytes = size_bytes

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Prepare to read parts of a file."""
        return cls(path, (await asyncio.to_thread(path.stat)).st_size)

    async def read(self, begin: int, end: int) -> bytes:
        """Return the bytes from ``begin`` to ``end``."""
        return await asyncio.to_thread(self._read, begin, end)

    def _read(self, begin: int, end: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)


CATALOG = ("catalog.bytes", "catalog.offsets")


async def read_outputs(reader: Reader) -> Outputs:
    """Read what a bundle's answers can say: its header, and the catalog if it ranks.

    BundleRejected if it is no bundle. Its checksum is not checked: whoever serves the bundle reads
    and verifies all of it.
    """
    findings = Findings()
    header = await _read_header(reader, findings)
    manifest = manifest_of(header, findings)
    findings.raise_if_any()
    assert manifest is not None, "a manifest that can't be parsed is a finding"
    tensors = {}
    if manifest.described_kind.has_catalog:
        for name in CATALOG:
            entry = header.entries[name]
            begin, end = header.data_start + entry.begin, header.data_start + entry.end
            tensors[name] = tensor_array(memoryview(await reader.read(begin, end)), entry)
    return Outputs.of(manifest, tensors)


async def _read_header(reader: Reader, findings: Findings) -> Header:
    limits = BundleLimits()
    length = int.from_bytes(await reader.read(0, LENGTH_BYTES), "little")
    end = LENGTH_BYTES + min(length, limits.max_header_bytes)
    beginning = memoryview(await reader.read(0, end))
    return read_header(beginning, reader.size_bytes, limits.max_header_bytes, findings)
