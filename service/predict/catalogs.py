"""Catalogs of ranking heads, read from bundle files off the event loop and kept by digest."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

import safetensors

from peterrec.model.kinds import KINDS
from peterrec.patches.bundle.bundle import Catalog
from peterrec.service.errors import BundleNotReady
from peterrec.service.protocol.messages import BundleEntry

MAX_ITEMS = 5_000_000
"""Items of all kept catalogs together; the least recently used catalogs go first."""


class Catalogs:
    """Lives on the event loop; a catalog is read once, in a thread, however many ask for it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Catalog] = OrderedDict()
        self._loading: dict[str, asyncio.Task[Catalog]] = {}

    def peek(self, digest: str) -> Catalog | None:
        """The catalog if it is at hand."""
        catalog = self._kept.get(digest)
        if catalog is not None:
            self._kept.move_to_end(digest)
        return catalog

    async def load(self, bundle: BundleEntry) -> Catalog:
        """The bundle's catalog; BundleNotReady if its file has gone."""
        return await asyncio.shield(self._begin(bundle))

    def prefetch(self, bundles: Iterable[BundleEntry]) -> None:
        """Begin to read the catalogs of new ranking bundles before a request needs them."""
        for bundle in bundles:
            if KINDS[bundle.kind].has_catalog and bundle.digest not in self._kept:
                self._begin(bundle)

    def _begin(self, bundle: BundleEntry) -> asyncio.Task[Catalog]:
        task = self._loading.get(bundle.digest)
        if task is None:
            task = asyncio.create_task(self._load(bundle))
            self._loading[bundle.digest] = task
            task.add_done_callback(lambda done: self._end(bundle.digest, done))
        return task

    def _end(self, digest: str, task: asyncio.Task[Catalog]) -> None:
        del self._loading[digest]
        if not task.cancelled():
            task.exception()  # a failed prefetch is told to whoever asks next

    async def close(self) -> None:
        """Let reads under way finish."""
        await asyncio.gather(*self._loading.values(), return_exceptions=True)

    async def _load(self, bundle: BundleEntry) -> Catalog:
        try:
            catalog = await asyncio.to_thread(read_catalog, bundle.catalog_path)
        except (OSError, safetensors.SafetensorError) as error:
            raise BundleNotReady(f"sha256:{bundle.digest}") from error
        self._kept[bundle.digest] = catalog
        while sum(map(len, self._kept.values())) > MAX_ITEMS and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return catalog


def read_catalog(path: str) -> Catalog:
    """The catalog in a verified bundle file, its index built. Blocks."""
    with safetensors.safe_open(path, "numpy") as file:
        catalog = Catalog.of(
            {name: file.get_tensor(name) for name in ("catalog.bytes", "catalog.offsets")}
        )
    catalog.index_of("")  # builds the index
    return catalog
