"""Catalogs of ranking heads, read from bundle files in a thread and cached by digest."""

import asyncio
import mmap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from cachetools import LRUCache

from peterrec.model.kinds import KINDS
from peterrec.patches.bundle.bundle import Catalog
from peterrec.patches.bundle.contents import manifest_of
from peterrec.patches.bundle.header import read_header, tensor_view
from peterrec.patches.errors import BundleRejected, Findings
from peterrec.service.errors import BundleNotReady
from peterrec.service.protocol.messages import BundleEntry

MAX_ITEMS = 5_000_000
"""Items of all cached catalogs together; the least recently used catalogs are evicted first."""


class Catalogs:
    """A cache of catalogs. Each is read once, in a thread, even if many requests ask for it.

    Lives on the event loop.
    """

    def __init__(self) -> None:
        self._cached: LRUCache[str, Catalog] = LRUCache(MAX_ITEMS, getsizeof=_size)
        self._reading: dict[str, asyncio.Task[Catalog]] = {}

    def peek(self, digest: str) -> Catalog | None:
        """Return the catalog if it is cached."""
        return self._cached.get(digest)

    def put(self, digest: str, catalog: Catalog) -> None:
        """Cache a catalog that was read elsewhere."""
        self._cached[digest] = catalog

    async def read(self, bundle: BundleEntry) -> Catalog:
        """Return the bundle's catalog; raise BundleNotReady if its file is gone."""
        return await asyncio.shield(self._begin(bundle))

    def prefetch(self, bundles: Iterable[BundleEntry]) -> None:
        """Begin to read the catalogs of new ranking bundles, before a request needs them."""
        for bundle in bundles:
            if KINDS[bundle.kind].has_catalog and bundle.digest not in self._cached:
                self._begin(bundle)

    def _begin(self, bundle: BundleEntry) -> asyncio.Task[Catalog]:
        task = self._reading.get(bundle.digest)
        if task is None:
            task = asyncio.create_task(self._read(bundle))
            self._reading[bundle.digest] = task
            task.add_done_callback(lambda done: self._end(bundle.digest, done))
        return task

    def _end(self, digest: str, task: asyncio.Task[Catalog]) -> None:
        del self._reading[digest]
        if not task.cancelled():
            task.exception()  # mark it as seen: the next request reads again and gets the error

    async def close(self) -> None:
        """Wait for the reads in progress."""
        await asyncio.gather(*self._reading.values(), return_exceptions=True)

    async def _read(self, bundle: BundleEntry) -> Catalog:
        try:
            catalog = await asyncio.to_thread(read_catalog, bundle.catalog_path)
        except (OSError, ValueError, BundleRejected) as error:
            raise BundleNotReady(f"sha256:{bundle.digest}") from error
        self._cached[bundle.digest] = catalog
        return catalog


def _size(catalog: Catalog) -> int:
    """Count a catalog's items, at most the limit, so that a larger catalog is cached alone."""
    return min(len(catalog), MAX_ITEMS)


def read_catalog(path: str) -> Catalog:
    """Read the catalog in a verified bundle file and build its index. Blocks.

    The ids are copied. Titles and attributes stay in the file, which is mapped: so all workers
    share the memory of those that are used. The file may be removed meanwhile.
    """
    with Path(path).open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    findings = Findings()
    header = read_header(view, len(view), len(view), findings)
    manifest = manifest_of(header, findings)
    findings.raise_if_any()
    assert manifest is not None
    tensors = {
        name: tensor_view(view, header, name)
        for name in header.entries
        if name.startswith(("catalog.", "title.", "attribute."))
    }
    ids = {name: np.array(tensors[name]) for name in ("catalog.bytes", "catalog.offsets")}
    catalog = Catalog.of_bundle(manifest, tensors | ids)
    catalog.index_of("")  # builds the index
    return catalog
