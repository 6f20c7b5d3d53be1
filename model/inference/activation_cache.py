"""Cached activations of recent users below the blocks that tasks patch."""

from cachetools import LRUCache
from torch import Tensor

ActivationKey = tuple[bytes, int]
"""A history's tokens as the network reads them, and the block whose input is cached."""


class ActivationCache:
    """Block inputs [N, C] by history, up to ``limit_bytes``; the least recently used leave first.

    Used by one thread, the device's owner.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.hits = 0
        self._states: LRUCache[ActivationKey, Tensor] = LRUCache(limit_bytes, lambda t: t.nbytes)

    @property
    def is_on(self) -> bool:
        """False if nothing may be cached."""
        return self._states.maxsize > 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all cached activations."""
        return int(self._states.currsize)

    def get(self, key: ActivationKey) -> Tensor | None:
        """The activations of a history, which then counts as the most recently used."""
        found = self._states.get(key)
        self.hits += found is not None
        return found

    def put(self, key: ActivationKey, states: Tensor) -> None:
        """Cache ``states`` unless the key is known or they exceed the limit alone."""
        if key not in self._states and states.nbytes <= self._states.maxsize:
            self._states[key] = states
