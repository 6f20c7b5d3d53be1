"""States of recent users below the blocks that tasks patch: bounded, the oldest leave first."""

from collections import OrderedDict

from torch import Tensor

TrunkKey = tuple[bytes, int]
"""A history's tokens as the network reads them, and the block whose input is kept."""


class TrunkStates:
    """Block inputs [N, C] by history. Used by one thread, the device's owner."""

    def __init__(self, limit_bytes: int) -> None:
        self.size_bytes = 0
        self.hits = 0
        self._limit_bytes = limit_bytes
        self._states: OrderedDict[TrunkKey, Tensor] = OrderedDict()

    @property
    def is_on(self) -> bool:
        """False if nothing may be kept."""
        return self._limit_bytes > 0

    def get(self, key: TrunkKey) -> Tensor | None:
        """The states of a history, which then counts as the most recent."""
        found = self._states.get(key)
        if found is not None:
            self.hits += 1
            self._states.move_to_end(key)
        return found

    def put(self, key: TrunkKey, states: Tensor) -> None:
        """Keep ``states``, if they fit at all."""
        if states.nbytes > self._limit_bytes or key in self._states:
            return
        self._states[key] = states
        self.size_bytes += states.nbytes
        while self.size_bytes > self._limit_bytes:
            self.size_bytes -= self._states.popitem(last=False)[1].nbytes
