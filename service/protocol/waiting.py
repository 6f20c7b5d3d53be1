"""How the places of a queue are shared: no tenant's rows keep those of another one out.

A worker counts the rows that it has sent, and the device process those that wait for it. Both
refuse by the same rule.
"""

from collections.abc import Mapping

from peterrec.service.protocol.sender import INTERACTIVE, Sender

SMALLEST_SHARE = 512
"""Places that a tenant's share has at least, unless that were half of all: the largest call."""

BATCH_SHARE = 0.75
"""The part of all places, and of a tenant's share, that calls of the priority batch may fill."""


class WaitingPlaces:
    """The places that each tenant's rows take. Used by one thread.

    As long as there is room, anybody gets in. Once all places are taken, a tenant still gets in if
    its rows take less than its share: what it would have if the places were shared by weight among
    the tenants that wait. So ``max_places`` can be exceeded, by tenants below their share only.
    """

    def __init__(self, max_places: int) -> None:
        self.max_places = max_places
        self.total = 0
        self.others = 0  # places that a worker was told that rows of other workers take
        self._of: dict[str, int] = {}
        self._weights: Mapping[str, float] = {}
        self._weight = 0.0  # of the tenants that wait

    def of(self, tenant: str) -> int:
        """Return the places that a tenant's rows take."""
        return self._of.get(tenant, 0)

    def has_room(self, sender: Sender, places: int) -> bool:
        """Return whether so many more places may be taken."""
        part = 1.0 if sender.priority == INTERACTIVE else BATCH_SHARE
        if self.total + self.others + places <= part * self.max_places:
            return True
        return self.of(sender.tenant) + places <= part * self.share(sender.tenant)

    def take(self, sender: Sender, places: int) -> bool:
        """Take so many places if there is room for them; return whether there was."""
        if not self.has_room(sender, places):
            return False
        tenant = sender.tenant
        if tenant in self._of:
            self._of[tenant] += places
        else:
            self._of[tenant] = places
            self._weight += self.weight(tenant)
        self.total += places
        return True

    def share(self, tenant: str) -> float:
        """Return the places that a tenant gets when all are taken."""
        own = self.weight(tenant)
        others = self._weight - (own if tenant in self._of else 0.0)
        share = self.max_places * own / (own + others)
        return max(share, min(SMALLEST_SHARE, self.max_places / 2))

    def leave(self, tenant: str, places: int) -> None:
        """Count places that are free again."""
        self.total -= places
        left = self._of[tenant] - places
        if left:
            self._of[tenant] = left
        else:
            del self._of[tenant]
            self._weight = self._weight - self.weight(tenant) if self._of else 0.0

    def weight(self, tenant: str) -> float:
        """Return a tenant's weight: 1 unless another one was set."""
        return self._weights.get(tenant, 1.0)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Replace the weights; tenants that have none have 1."""
        self._weights = weights
        self._weight = sum(map(self.weight, self._of))

    def by_tenant(self) -> Mapping[str, int]:
        """Return the places of each tenant that waits."""
        return self._of
