"""How replicas share the quotas of a tenant that hold for requests: by leases in Redis.

Each replica tells regularly what part of each quota it was asked for. It gets that, and an equal
part of what nobody asks for; if more is asked for than there is, it gets in proportion. The sum of
the shares is never above 1, apart from ``LEAST_SHARE`` of a replica that comes when all of a quota
is leased. Nothing of this is a change of the registry, or a part of its archive.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import msgspec

from peterrec.patches.identity import TenantId
from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.redis_store import Store
from peterrec.patches.registry.scripts import EXCHANGE_SHARES
from peterrec.patches.registry.serialization import text_of

LIVE_S = 3.0
"""Seconds without an exchange after which a replica's leases are others' again."""

KEPT_S = 60.0
"""Seconds for which Redis keeps what no replica brings up to date."""

RESERVE = 0.04
"""Part of each quota that is shared equally by all replicas, whatever they are asked for: a replica
to which a tenant comes has something to begin with."""

LEAST_SHARE = 0.01
"""Share of a replica that comes when all is leased, until the others have given something back."""

SHARED = ("requests", "administration", "rows", "waiting_rows")
"""What shares are for: predictions, other calls, rows, and rows that wait."""


@dataclass(frozen=True, slots=True)
class Use:
    """What a tenant uses of its quotas: rates per second over the last seconds, and what is now."""

    requests_per_s: float = 0.0
    administration_per_s: float = 0.0
    rows_per_s: float = 0.0
    waiting_rows: float = 0.0
    streams: float = 0.0

    def plus(self, other: "Use") -> "Use":
        """Return the sum."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Use(*(one + more for one, more in pairs))


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica was asked for of each that is ``SHARED``, and what it admitted.

    ``asked`` are parts of the quotas, above 1 if it was asked for more; 0 without a quota.
    """

    tenant: TenantId
    asked: Sequence[float]
    used: Use


@dataclass(frozen=True, slots=True)
class Lease:
    """A replica's share of each that is ``SHARED``, from 0 to 1, and what other replicas use."""

    shares: tuple[float, ...]
    elsewhere: Use


class Presence(msgspec.Struct, frozen=True):
    """What a replica says of itself: its host, and the revision of the registry that it serves."""

    host: str = ""
    revision: int = 0


UNSAID = Presence()


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica that exchanged something within ``LIVE_S``, ``seen_s`` seconds ago."""

    replica: str
    presence: Presence
    seen_s: float


class Exchanged(NamedTuple):
    """How many replicas there are, and the leases of this one."""

    replicas: int
    leases: tuple[Lease, ...]


class _Answer(msgspec.Struct):
    shares: tuple[float, ...]
    elsewhere: tuple[float, ...]


class _Answers(msgspec.Struct):
    replicas: int
    tenants: tuple[_Answer, ...] = ()


class _Stored(msgspec.Struct):
    used: tuple[float, ...]


class ShareStore:
    """The leases of all replicas."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def exchange(
        self, replica: str, reports: Sequence[Report], presence: Presence = UNSAID
    ) -> Exchanged:
        """Tell what this replica was asked for, and lease its shares; one for each report.

        Without reports, the replica only says that it is there. RegistryUnavailable if Redis is
        away: what was leased last holds then.
        """
        keys = [*self._of_replicas(), *(self._key(each.tenant) for each in reports)]
        told = [
            {"asked": list(each.asked), "used": list(asdict(each.used).values())}
            for each in reports
        ]
        answer = await self._store.run(
            EXCHANGE_SHARES,
            keys,
            {
                "replica": replica,
                "presence": msgspec.json.encode(presence).decode(),
                "reports": told,
                "live_ms": int(1000 * LIVE_S),
                "kept_ms": int(1000 * KEPT_S),
                "reserve": RESERVE,
                "least": LEAST_SHARE,
            },
        )
        found = msgspec.json.decode(answer, type=_Answers)
        leases = tuple(Lease(each.shares, Use(*each.elsewhere)) for each in found.tenants)
        return Exchanged(found.replicas, leases)

    async def use_of(self, tenant: TenantId) -> Use:
        """Sum up what all replicas have told of a tenant lately."""
        with redis_errors():
            stored = await self._store.redis.hgetall(self._key(tenant))
        total = Use()
        for record in stored.values():
            total = total.plus(Use(*msgspec.json.decode(record, type=_Stored).used))
        return total

    async def replicas(self) -> list[Replica]:
        """Return the replicas that are there, by host and name.

        How long ago one was seen is in relation to the one that was seen last.
        """
        live, presences = self._of_replicas()
        redis = self._store.redis
        with redis_errors():
            seen, said = await redis.hgetall(live), await redis.hgetall(presences)
        now_ms = max(map(float, seen.values()), default=0.0)  # of Redis' clock, as all of them
        found = [
            Replica(
                text_of(name),
                msgspec.json.decode(said[name], type=Presence) if name in said else UNSAID,
                max(0.0, (now_ms - float(at_ms)) / 1000),
            )
            for name, at_ms in seen.items()
        ]
        there = (each for each in found if each.seen_s < LIVE_S)
        return sorted(there, key=lambda each: (each.presence.host, each.replica))

    async def leave(self, replica: str) -> None:
        """Give everything back: the replica stops."""
        with redis_errors():
            for key in self._of_replicas():
                await self._store.redis.hdel(key, replica)

    def _of_replicas(self) -> tuple[str, str]:
        """Return the keys of when replicas were last seen, and of what they said."""
        return self._store.key("replicas"), self._store.key("presences")

    def _key(self, tenant: TenantId) -> str:
        return self._store.key("shares", tenant)
