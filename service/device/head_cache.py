"""The heads on the device, within a limit in bytes: a cache that evicts their large parts.

Not ``cachetools.LRUCache``: what is evicted stays known, an eviction is all or nothing, heads can
be pinned, and room is reserved for a head while it is read from its file.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from peterrec.model.inference.heads import HeadBytes, HeadRef
from peterrec.model.inference.item_tables import TableWeights
from peterrec.model.inference.top_k import CatalogWeights
from peterrec.service.errors import HeadBudgetExceeded
from peterrec.service.protocol.messages import Handle


@dataclass(frozen=True, slots=True)
class HeadMoves:
    """How many heads were evicted and reloaded, and their bytes, since the last report."""

    evicted: int = 0
    evicted_bytes: int = 0
    reloaded: int = 0
    reloaded_bytes: int = 0


class HeadCache:
    """Bytes of heads on the device within a limit. Used by the device thread only.

    Small heads are never evicted. A ranking head or an item table may be evicted if it can be read
    from a file again. What is never evicted leaves room for the largest of the others, so that each
    of these can be reloaded. ``evicted`` are the residencies whose heads are not on the device.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._fixed_bytes = 0
        self._evictable: OrderedDict[Handle, CatalogWeights | TableWeights] = OrderedDict()
        # The least recently used come first.
        self._pinned: set[Handle] = set()
        self._reloading: Handle | None = None
        self._moves = HeadMoves()
        self.used_bytes = 0
        self.evicted: set[Handle] = set()

    def reserve(self, size: HeadBytes, *, is_evictable: bool) -> None:
        """Make room for a new head; raise HeadBudgetExceeded, with nothing evicted, if it can't."""
        largest = max((large.size_bytes for large in self._evictable.values()), default=0)
        if is_evictable:
            largest = max(largest, size.large)
        fixed = self._fixed_bytes + size.pooled + (0 if is_evictable else size.large)
        if fixed + largest > self._limit:
            raise HeadBudgetExceeded(sum(size), self._fixed_bytes, self._limit)
        self._make_room(sum(size))

    def add(self, handle: Handle, head: HeadRef, *, is_evictable: bool) -> None:
        """Count a head that is on the device now. It can't be evicted before ``unpin``."""
        size = head.size
        self.used_bytes += sum(size)
        self._fixed_bytes += size.pooled
        if head.large is not None and is_evictable:
            self._evictable[handle] = head.large
            self._pinned.add(handle)
        else:
            self._fixed_bytes += size.large

    def unpin(self) -> None:
        """Let the new heads be evicted from now on: they have been validated."""
        self._pinned.clear()

    def remove(self, handle: Handle, head: HeadRef) -> None:
        """Forget a head whose residency is freed."""
        size = head.size
        self._fixed_bytes -= size.pooled
        self.used_bytes -= size.pooled
        if handle not in self._evictable:
            self._fixed_bytes -= size.large
            self.used_bytes -= size.large
            return
        if handle == self._reloading:
            self._cancel_reload()
        elif handle not in self.evicted:
            self.used_bytes -= size.large
        del self._evictable[handle]
        self._pinned.discard(handle)
        self.evicted.discard(handle)

    def touch(self, handles: Iterable[Handle]) -> None:
        """Mark heads as used now."""
        for handle in handles:
            if handle in self._evictable:
                self._evictable.move_to_end(handle)

    def begin_reload(self, handle: Handle) -> None:
        """Make room for an evicted head. One head at a time is reloaded."""
        assert self._reloading is None
        assert handle in self.evicted
        self._make_room(self._evictable[handle].size_bytes)
        self.used_bytes += self._evictable[handle].size_bytes
        self._reloading = handle

    def is_reloading(self, handle: Handle) -> bool:
        """True while room is reserved for this head; a new head may have taken the room."""
        return handle == self._reloading

    def end_reload(self, handle: Handle, *, is_here: bool) -> None:
        """Note that the head is on the device again, or that its file could not be read."""
        assert handle == self._reloading
        if not is_here:
            self._cancel_reload()
            return
        self._reloading = None
        self.evicted.discard(handle)
        self._evictable.move_to_end(handle)
        size = self._evictable[handle].size_bytes
        self._count(HeadMoves(reloaded=1, reloaded_bytes=size))

    def take_moves(self) -> HeadMoves:
        """Return what was evicted and reloaded since the last call."""
        moves, self._moves = self._moves, HeadMoves()
        return moves

    def _make_room(self, wanted: int) -> None:
        """Evict until ``wanted`` bytes are free; HeadBudgetExceeded if too many are pinned."""
        excess = self.used_bytes + wanted - self._limit
        leaving: list[Handle] = []
        for handle, large in self._evictable.items():
            if excess <= 0:
                break
            if handle not in self.evicted and handle not in self._pinned:
                leaving.append(handle)
                excess -= large.size_bytes
        reserved = 0 if self._reloading is None else self._evictable[self._reloading].size_bytes
        if excess > reserved:
            raise HeadBudgetExceeded(wanted, self.used_bytes, self._limit)
        if excess > 0:
            self._cancel_reload()
        for handle in leaving:
            self._evict(handle)

    def _cancel_reload(self) -> None:
        assert self._reloading is not None
        self.used_bytes -= self._evictable[self._reloading].size_bytes
        self._reloading = None

    def _evict(self, handle: Handle) -> None:
        large = self._evictable[handle]
        large.take_off()
        self.evicted.add(handle)
        self.used_bytes -= large.size_bytes
        self._count(HeadMoves(evicted=1, evicted_bytes=large.size_bytes))

    def _count(self, more: HeadMoves) -> None:
        self._moves = HeadMoves(
            self._moves.evicted + more.evicted,
            self._moves.evicted_bytes + more.evicted_bytes,
            self._moves.reloaded + more.reloaded,
            self._moves.reloaded_bytes + more.reloaded_bytes,
        )
