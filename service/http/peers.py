"""How many connections a worker holds, and how many of them one peer may have."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

OTHERS_SHARE = 0.25
"""Share of a worker's connections that a single peer never gets."""

SPARE = 32
"""Connections beyond all limits, for health checks: a load balancer must not take a worker that
is busy for one that is dead."""


class Closable(Protocol):
    """A connection that can be closed while it is not in use."""

    @property
    def is_resting(self) -> bool:
        """Whether no request is in progress."""

    def close_unused(self) -> None:
        """Close the connection without an answer."""


@dataclass(slots=True)
class Held:
    """Connections in the order in which they were opened.

    ``silent`` ones have not sent a whole request head yet.
    """

    silent: "OrderedDict[Closable, None]" = field(default_factory=OrderedDict)
    others: "OrderedDict[Closable, None]" = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self.silent) + len(self.others)

    def take_one_unused(self) -> Closable | None:
        """Remove and return the connection that is missed least; None if all are in use."""
        found = next(iter(self.silent), None)
        if found is None:
            found = next((each for each in self.others if each.is_resting), None)
        if found is not None:
            self.remove(found)
        return found

    def remove(self, connection: Closable) -> None:
        """Forget a connection."""
        self.silent.pop(connection, None)
        self.others.pop(connection, None)

    def hear(self, connection: Closable) -> None:
        """Note that a connection is silent no longer."""
        self.silent.pop(connection, None)
        self.others[connection] = None


class Peers:
    """Admits connections of all peers up to ``limit``, and of one peer up to ``peer_limit``.

    At a limit, the oldest connection without a request in progress makes room, at first among those
    that never sent a request. So idle sockets keep nobody out.
    """

    def __init__(self, limit: int, peer_limit: int) -> None:
        self._limit = limit
        self._peer_limit = max(1, min(peer_limit, int(limit * (1 - OTHERS_SHARE))))
        self._peers: dict[str, Held] = {}
        self._all = Held()
        self._spare = Held()

    @property
    def count(self) -> int:
        """The number of connections."""
        return len(self._all)

    def open(self, address: str, connection: Closable) -> bool:
        """Count a new connection; False if there is no room, since all others are in use."""
        of_peer = self._peers.get(address, Held())
        if len(of_peer) >= self._peer_limit and not self._close_one(of_peer):
            return False
        if len(self._all) >= self._limit and not self._close_one(self._all):
            return False
        for held in (self._peers.setdefault(address, of_peer), self._all):
            held.silent[connection] = None
        return True

    def open_spare(self, connection: Closable) -> bool:
        """Count a connection that may only ask for the worker's health; False if all are in use."""
        if len(self._spare) >= SPARE and not self._close_one(self._spare):
            return False
        self._spare.silent[connection] = None
        return True

    def hear(self, address: str, connection: Closable) -> None:
        """Note the first request of a connection."""
        if connection in self._spare.silent:
            self._spare.hear(connection)
            return
        if address in self._peers:
            self._peers[address].hear(connection)
            self._all.hear(connection)

    def close(self, address: str, connection: Closable) -> None:
        """Forget a connection that has ended."""
        self._spare.remove(connection)
        self._all.remove(connection)
        of_peer = self._peers.get(address)
        if of_peer is not None:
            of_peer.remove(connection)
            if not len(of_peer):
                del self._peers[address]

    def _close_one(self, held: Held) -> bool:
        connection = held.take_one_unused()
        if connection is None:
            return False
        connection.close_unused()
        return True
