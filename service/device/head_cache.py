"""Which heads lie on the device: ranking heads used least recently leave when others need room."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from peterrec.model.inference.heads import HeadRef
from peterrec.service.errors import HeadBudgetExceeded
from peterrec.service.protocol.messages import Handle


@dataclass(frozen=True, slots=True)
class HeadMoves:
    """Heads that left the device for others, and those that came back, since the last time."""

    evicted: int = 0
    evicted_bytes: int = 0
    returned: int = 0
    returned_bytes: int = 0


class HeadRoom:
    """Bytes of heads on the device within a limit. Used by the device thread only.

    Small heads stay. A ranking head may leave if it can be read from a file again; room for the
    largest of them, alone, is always kept, so that each can come back. ``away`` are the residencies
    whose heads are not on the device.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._staying_bytes = 0
        self._movable: OrderedDict[Handle, HeadRef] = OrderedDict()  # least recently used first
        self._held: set[Handle] = set()
        self._returning: Handle | None = None
        self._moves = HeadMoves()
        self.used_bytes = 0
        self.away: set[Handle] = set()

    def admit(self, size_bytes: int, *, is_movable: bool) -> None:
        """Make room for a new head; HeadBudgetExceeded if it can't be, and then nothing moves."""
        largest = max((head.size_bytes for head in self._movable.values()), default=0)
        staying = self._staying_bytes + (0 if is_movable else size_bytes)
        if staying + max(largest, size_bytes if is_movable else 0) > self._limit:
            raise HeadBudgetExceeded(size_bytes, self._staying_bytes, self._limit)
        self._make_room(size_bytes)

    def add(self, handle: Handle, head: HeadRef, *, is_movable: bool) -> None:
        """A head lies on the device now; if it may leave, not before ``release_held``."""
        self.used_bytes += head.size_bytes
        if is_movable:
            self._movable[handle] = head
            self._held.add(handle)
        else:
            self._staying_bytes += head.size_bytes

    def release_held(self) -> None:
        """New heads have been validated: they may leave from now on."""
        self._held.clear()

    def remove(self, handle: Handle, head: HeadRef) -> None:
        """The head's residency is freed."""
        if handle not in self._movable:
            self._staying_bytes -= head.size_bytes
            self.used_bytes -= head.size_bytes
            return
        if handle == self._returning:
            self._give_up_return()
        elif handle not in self.away:
            self.used_bytes -= head.size_bytes
        del self._movable[handle]
        self._held.discard(handle)
        self.away.discard(handle)

    def use(self, handles: Iterable[Handle]) -> None:
        """Rows of these residencies run now."""
        for handle in handles:
            if handle in self._movable:
                self._movable.move_to_end(handle)

    def begin_return(self, handle: Handle) -> None:
        """Make room for a head that is away; one at a time."""
        assert self._returning is None
        assert handle in self.away
        self._make_room(self._movable[handle].size_bytes)
        self.used_bytes += self._movable[handle].size_bytes
        self._returning = handle

    def is_returning(self, handle: Handle) -> bool:
        """True while room is kept for a head that comes back; a new head may have taken it."""
        return handle == self._returning

    def end_return(self, handle: Handle, *, is_here: bool) -> None:
        """The head that was returning has come back, or could not be read."""
        assert handle == self._returning
        if not is_here:
            self._give_up_return()
            return
        self._returning = None
        self.away.discard(handle)
        self._movable.move_to_end(handle)
        size = self._movable[handle].size_bytes
        self._count(HeadMoves(returned=1, returned_bytes=size))

    def take_moves(self) -> HeadMoves:
        """What has moved since this was asked last."""
        moves, self._moves = self._moves, HeadMoves()
        return moves

    def _make_room(self, wanted: int) -> None:
        """Evict until ``wanted`` bytes are free; HeadBudgetExceeded if too many are held."""
        excess = self.used_bytes + wanted - self._limit
        leaving: list[Handle] = []
        for handle, head in self._movable.items():
            if excess <= 0:
                break
            if handle not in self.away and handle not in self._held:
                leaving.append(handle)
                excess -= head.size_bytes
        reserved = 0 if self._returning is None else self._movable[self._returning].size_bytes
        if excess > reserved:
            raise HeadBudgetExceeded(wanted, self.used_bytes, self._limit)
        if excess > 0:
            self._give_up_return()
        for handle in leaving:
            self._evict(handle)

    def _give_up_return(self) -> None:
        assert self._returning is not None
        self.used_bytes -= self._movable[self._returning].size_bytes
        self._returning = None

    def _evict(self, handle: Handle) -> None:
        head = self._movable[handle]
        assert head.catalog is not None
        head.catalog.take_off()
        self.away.add(handle)
        self.used_bytes -= head.size_bytes
        self._count(HeadMoves(evicted=1, evicted_bytes=head.size_bytes))

    def _count(self, more: HeadMoves) -> None:
        self._moves = HeadMoves(
            self._moves.evicted + more.evicted,
            self._moves.evicted_bytes + more.evicted_bytes,
            self._moves.returned + more.returned,
            self._moves.returned_bytes + more.returned_bytes,
        )
