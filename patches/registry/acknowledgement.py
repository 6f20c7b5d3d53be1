"""Acknowledged changes: before a change is answered, Redis' replicas and disks have it, too.

Redis answers a write before its replicas have it, so a failover may lose what was answered.
``WAIT`` (and ``WAITAOF``, from Redis 7.2 on, for the disks) waits until all writes that a
connection has made are confirmed (``docs/decisions/0166-acknowledged-changes.md``).
"""

from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import RedisCluster

from peterrec.patches.errors import RegistryUnacknowledged
from peterrec.patches.redis.client import Client
from peterrec.patches.registry.serialization import outcome_of

TIMEOUT_S = 2.0
"""Seconds that a change waits for its confirmation, which is below the timeout of a command."""

KEPT_S = 60
"""Seconds for which the key stays that is written so that there is something to wait for."""

_HINT = (
    "The change was made, and may get lost in a failover. Send it again: it is answered once it is"
    " confirmed."
)


class Acknowledgement:
    """How many of Redis' replicas must confirm a change, and with ``on_disk`` also all their disks.

    With ``on_disk``, the primary's own append-only file must have it as well.
    """

    def __init__(self, replicas: int, *, on_disk: bool = False) -> None:
        self._replicas = replicas
        self._on_disk = on_disk
        self._is_known_to_work = False

    async def make(
        self,
        redis: Client,
        script: Callable[..., Any],  # Any: redis-py does not type answers
        keys: Sequence[str],
        argument: bytes,
        written: str,
    ) -> bytes | str:
        """Run the script of a change and return its answer once that is confirmed.

        RegistryUnacknowledged if it is not in time. ``written`` is a key that is written after the
        script, on the same connection: a repeated change may change nothing, and a connection that
        has written nothing has nothing to wait for.
        """
        await self._check(redis)
        timeout_ms = int(TIMEOUT_S * 1000)
        local = int(self._on_disk)
        wait = ("WAITAOF", local) if self._on_disk else ("WAIT",)
        async with redis.pipeline(transaction=False) as pipeline:
            await script(keys=keys, args=[argument], client=pipeline)
            pipeline.set(written, b"1", ex=KEPT_S)
            pipeline.execute_command(*wait, self._replicas, timeout_ms)
            answer, _, confirmed = await pipeline.execute(raise_on_error=False)
        if isinstance(answer, Exception):
            raise answer
        if outcome_of(answer).error:
            return answer  # type: ignore[no-any-return]  # nothing was changed
        if isinstance(confirmed, Exception):
            raise RegistryUnacknowledged(
                f"Redis cannot confirm the change: {confirmed}.",
                hint="PETERREC_ACK_DISK needs appendonly in Redis and its replicas.",
            ) from confirmed
        disks, replicas = confirmed if self._on_disk else (local, confirmed)
        if disks < local or replicas < self._replicas:
            raise RegistryUnacknowledged(self._shortfall(disks, replicas), hint=_HINT)
        return answer  # type: ignore[no-any-return]  # the scripts return texts

    def _shortfall(self, disks: int, replicas: int) -> str:
        own = "" if disks or not self._on_disk else " and its own disk has not"
        return (
            f"{replicas} of Redis' replicas have confirmed the change within {TIMEOUT_S:g} s, "
            f"{self._replicas} should{own}."
        )

    async def _check(self, redis: Client) -> None:
        """Raise RegistryUnacknowledged before anything is changed if Redis cannot do it."""
        if self._is_known_to_work:
            return
        if isinstance(redis, RedisCluster):
            raise RegistryUnacknowledged(
                "changes of a Redis Cluster cannot be acknowledged; nothing was changed.",
                hint="Unset PETERREC_ACK_REPLICAS and PETERREC_ACK_DISK, or use Sentinels.",
            )
        if self._on_disk and not await _knows(redis, "WAITAOF"):
            raise RegistryUnacknowledged(
                "this Redis does not know WAITAOF; nothing was changed.",
                hint="PETERREC_ACK_DISK needs Redis 7.2 or later, or Valkey.",
            )
        self._is_known_to_work = True


async def _knows(redis: Client, command: str) -> bool:
    found = await redis.execute_command("COMMAND INFO", command)
    return any(
        entry is not None for entry in (found.values() if isinstance(found, dict) else found)
    )
