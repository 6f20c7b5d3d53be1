"""What replicas share of the outcomes that callers tell: all of it bounded, and none for long.

Nothing of this is a change of the registry, or a part of its archive. It is lost with Redis, and
then the replicas begin anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from peterrec.patches.identity import TaskRef, TenantId
from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.redis_store import Argument, Store, field_of
from peterrec.patches.registry.scripts import CLAIM_OUTCOMES, COUNT_HITS, REMEMBER_ANSWERS
from peterrec.patches.registry.serialization import text_of

MOST_MARKS = 10_000
"""Outcomes of a tenant after which it may be forgotten that one was told: about a megabyte."""

MARKS_KEPT_S = 30 * 86_400.0
"""Seconds after a tenant's last outcome for which is known what was told."""

MOST_USERS = 10_000
"""Users of a tenant after which an answer may be forgotten: 2 MB, or 8 MB of long rankings."""

ANSWERS_KEPT_S = 86_400.0
"""Seconds for which an answer to a user is kept at most; half of that at least."""

WINDOW_SLOTS = 30
"""A window of a guard is divided into this many slots, and drops its oldest slot as time passes."""

PROD = "prod"
"""What stands for the digest of prod where hits are counted."""


@dataclass(frozen=True, slots=True)
class Hits:
    """How many outcomes were told, and the sum of how right the answers were."""

    outcomes: int = 0
    hits: float = 0.0


class _Sum(msgspec.Struct):
    n: int
    hits: float


class OutcomeStore:
    """The outcomes of all tenants, as far as replicas have to share something of them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def secret(self, own: bytes) -> bytes:
        """Return the secret with which ids of predictions are signed; ``own`` if there is none."""
        key = self._store.key("feedback_secret")
        with redis_errors():
            found = await self._store.redis.get(key)
            if found is None:
                await self._store.redis.set(key, own.hex(), nx=True)
                found = await self._store.redis.get(key)
        return own if found is None else bytes.fromhex(text_of(found))

    async def claim(self, tenant: TenantId, marks: Sequence[str]) -> list[bool]:
        """Take the marks of predictions, each once; say which are new.

        The last ``MOST_MARKS`` of a tenant are remembered at least.
        """
        argument: dict[str, Argument] = {
            "marks": list(marks),
            "most": MOST_MARKS,
            "kept_ms": int(1000 * MARKS_KEPT_S),
        }
        found = await self._store.run(CLAIM_OUTCOMES, self._pair("told", tenant), argument)
        return [bool(each) for each in found]

    async def remember(self, tenant: TenantId, answers: Mapping[str, str]) -> None:
        """Keep the last answers to users, at most a few hundred in one call."""
        argument: dict[str, Argument] = {
            "answers": dict(answers),
            "most": MOST_USERS,
            "kept_ms": int(1000 * ANSWERS_KEPT_S),
        }
        await self._store.run(REMEMBER_ANSWERS, self._pair("answered", tenant), argument)

    async def recall(self, tenant: TenantId, users: Sequence[str]) -> list[str | None]:
        """Return the last answers to users; None for those of whom none is kept."""
        with redis_errors():
            newest, older = [
                await self._store.redis.hmget(key, list(users))
                for key in self._pair("answered", tenant)
            ]
        found = (one or other for one, other in zip(newest, older, strict=True))
        return [None if each is None else text_of(each) for each in found]

    async def count_hits(
        self, ref: TaskRef, traffic_revision: int, window_s: int, added: Mapping[str, Hits]
    ) -> dict[str, Hits]:
        """Add outcomes of a traffic; return those of all replicas within the guard's window.

        Both are by digest, or ``PROD``.
        """
        told = [
            {"version": version, "outcomes": each.outcomes, "hits": each.hits}
            for version, each in added.items()
        ]
        argument: dict[str, Argument] = {
            "added": told,
            "slots": WINDOW_SLOTS,
            "slot_ms": max(1, 1000 * window_s // WINDOW_SLOTS),
        }
        key = self._store.key("hits", f"{field_of(ref)}:{traffic_revision}")
        found = msgspec.json.decode(
            await self._store.run(COUNT_HITS, [key], argument), type=dict[str, _Sum]
        )
        return {version: Hits(each.n, each.hits) for version, each in found.items()}

    async def forget(self, tenant: TenantId) -> None:
        """Forget what is kept of a tenant."""
        keys = [*self._pair("told", tenant), *self._pair("answered", tenant)]
        with redis_errors():
            await self._store.redis.delete(*keys)

    def _pair(self, name: str, tenant: TenantId) -> list[str]:
        """Return the keys of what is newest, and of what was before."""
        return [self._store.key(f"{name}_{age}", tenant) for age in ("newest", "older")]
