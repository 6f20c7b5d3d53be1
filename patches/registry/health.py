"""What the registry's Redis says of itself, and what of that endangers the registry."""

from dataclasses import dataclass
from typing import Any

from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.redis_store import Store

OLDEST_VERSION = (6, 2)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """One Redis server; of a cluster, one of its nodes."""

    software: str
    version: str
    mode: str
    role: str
    replicas: int
    used_bytes: int
    limit_bytes: int
    eviction_policy: str
    is_append_only: bool

    def warnings(self) -> tuple[str, ...]:
        """What should be otherwise, in sentences (``docs/registry.md``, Which Redis)."""
        numbers = tuple(int(part) for part in self.version.split(".")[:2] if part.isdecimal())
        found = {
            f"version {self.version} is older than 6.2": numbers < OLDEST_VERSION,
            "appendonly is off: a restart may lose acknowledged changes": not self.is_append_only,
            f"maxmemory-policy is {self.eviction_policy}: bundles may be evicted; use noeviction": (
                bool(self.limit_bytes) and self.eviction_policy != "noeviction"
            ),
            "it is a replica: nothing can be changed here": self.role != "master",
        }
        return tuple(warning for warning, is_so in found.items() if is_so)


async def server_facts(store: Store) -> ServerFacts:
    """Ask the server; Valkey tells its own version beside the Redis it is compatible with."""
    with redis_errors():
        told: dict[str, Any] = await store.redis.info()  # Any: numbers and texts
    return ServerFacts(
        software=str(told.get("server_name", "redis")),
        version=str(told.get("valkey_version") or told["redis_version"]),
        mode=str(told.get("redis_mode", told.get("server_mode", "standalone"))),
        role=str(told["role"]),
        replicas=int(told.get("connected_slaves", 0)),
        used_bytes=int(told["used_memory"]),
        limit_bytes=int(told.get("maxmemory", 0)),
        eviction_policy=str(told.get("maxmemory_policy", "noeviction")),
        is_append_only=bool(told.get("aof_enabled", 0)),
    )
