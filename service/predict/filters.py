"""Filters of a catalog as bits: ``where`` and what is available, cached for each tenant.

Only the worker sees attributes; the device gets a bit for each item. A filter of a large catalog is
made in a thread, so that no caller holds up the event loop, and one at a time for each tenant, so
that tenants take turns.
"""

import asyncio
from concurrent.futures import Executor

import msgspec
import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from peterrec.model.errors import PeterRecError
from peterrec.patches.bundle.bundle import Catalog
from peterrec.patches.registry.availability import Availability
from peterrec.service.predict.where import Where, key_of, passing, work_of

TENANT_BYTES = 4 << 20
"""Bytes of the filters that are kept for a tenant: 32 of a catalog of a million items."""

MAX_TENANTS = 16
"""Tenants whose filters are kept, those that used one last: 64 MiB in all."""

KEPT_BESIDE = 256
"""Bytes that a kept filter takes in addition to its bits."""

WORK_AT_ONCE = 100_000
"""Values that are looked at on the event loop: about a millisecond. More go to a thread."""

ITEM_WORK = 16
"""How many values an item of a list of availability counts as: it is sought by its id."""

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


class ItemFilter(msgspec.Struct, frozen=True, gc=False):
    """The items of a catalog that may be answered: a bit for each, and how many these are."""

    bits: bytes
    count: int

    @classmethod
    def of(cls, flags: Flags) -> "ItemFilter":
        """Pack flags [K]."""
        return cls(np.packbits(flags, bitorder="little").tobytes(), int(np.count_nonzero(flags)))

    def flags(self, items: int) -> Flags:
        """Return which of all items may be answered."""
        packed = np.frombuffer(self.bits, np.uint8)
        return np.unpackbits(packed, count=items, bitorder="little").view(np.bool_)

    def passes(self, indices: Indices) -> Flags:
        """Return which of these items, int64 [n], may be answered."""
        packed = np.frombuffer(self.bits, np.uint8)
        flags = (packed[indices >> 3] >> (indices & 7).astype(np.uint8)) & 1
        return np.asarray(flags, np.bool_)


class Wanted(msgspec.Struct, frozen=True):
    """What a question and its task restrict the answers to; at least one of the two is there."""

    digest: str
    where: Where | None
    availability: Availability | None

    @property
    def key(self) -> tuple[str, bytes, str]:
        """Names the filter among those of its tenant."""
        where = b"" if self.where is None else key_of(self.where)
        return self.digest, where, "" if self.availability is None else self.availability.digest


Found = ItemFilter | PeterRecError


class _OfTenant:
    """The filters of one tenant, and the lock under which one is made."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.cached: LRUCache[tuple[str, bytes, str], Found] = LRUCache(
            TENANT_BYTES, getsizeof=_size
        )


class ItemFilters:
    """Makes and keeps filters. Lives on the event loop, where it makes all if it has no thread."""

    def __init__(self, thread: Executor | None = None) -> None:
        self._thread = thread
        self._tenants: LRUCache[str, _OfTenant] = LRUCache(MAX_TENANTS)

    def peek(self, tenant: str, wanted: Wanted) -> Found | None:
        """Return a filter, or what is wrong with it, if it is kept."""
        of_tenant = self._tenants.get(tenant)
        return None if of_tenant is None else of_tenant.cached.get(wanted.key)

    async def make(self, tenant: str, wanted: Wanted, catalog: Catalog) -> Found:
        """Make a filter, or return what is wrong with it."""
        of_tenant = self._tenants.get(tenant)
        if of_tenant is None:
            of_tenant = self._tenants[tenant] = _OfTenant()
        async with of_tenant.lock:
            available = None
            if wanted.availability is not None and wanted.where is not None:
                listed = Wanted(wanted.digest, None, wanted.availability)  # common to all filters
                available = await self._kept(of_tenant, listed, catalog)
            return await self._kept(of_tenant, wanted, catalog, available)

    async def _kept(
        self,
        of_tenant: _OfTenant,
        wanted: Wanted,
        catalog: Catalog,
        available: Found | None = None,
    ) -> Found:
        found: Found | None = of_tenant.cached.get(wanted.key)
        if found is None:
            if self._thread is not None and _work(wanted, catalog) > WORK_AT_ONCE:
                loop = asyncio.get_running_loop()
                made = loop.run_in_executor(self._thread, _make, wanted, catalog, available)
                found = await made
            else:
                found = _make(wanted, catalog, available)
            of_tenant.cached[wanted.key] = found
        return found


def _make(wanted: Wanted, catalog: Catalog, available: Found | None) -> Found:
    """Make a filter; with ``available``, the list of available items is a filter already."""
    flags = np.ones(len(catalog), np.bool_)
    try:
        if wanted.where is not None:
            flags &= passing(wanted.where, catalog.attributes, len(catalog))
    except PeterRecError as error:
        return error
    if isinstance(available, ItemFilter):
        flags &= available.flags(len(catalog))
    elif wanted.availability is not None:
        flags &= _available(wanted.availability, catalog)
    return ItemFilter.of(flags)


def _available(availability: Availability, catalog: Catalog) -> Flags:
    found = (catalog.index_of(item) for item in availability.items)
    listed = [index for index in found if index is not None]
    flags = np.full(len(catalog), availability.mode == "unavailable")
    flags[listed] = availability.mode == "available"
    return flags


def available_bits(availability: Availability, catalog: Catalog) -> bytes:
    """The items of a catalog that may be answered, as bits."""
    return ItemFilter.of(_available(availability, catalog)).bits


def _work(wanted: Wanted, catalog: Catalog) -> int:
    work = len(catalog)
    if wanted.where is not None:
        work += work_of(wanted.where, catalog.attributes, len(catalog))
    if wanted.availability is not None and wanted.where is None:  # an id, its quotes and comma
        work += ITEM_WORK * (len(wanted.availability.text) // 4)
    return work


def _size(found: Found) -> int:
    bits = len(found.bits) if isinstance(found, ItemFilter) else 0
    return min(TENANT_BYTES, bits + KEPT_BESIDE)
