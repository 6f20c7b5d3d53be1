"""The state of the registry's Redis server, and which settings of it endanger the registry."""

from dataclasses import dataclass
from typing import Any

from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.redis_store import Store

OLDEST_VERSION = (6, 2)
"""The oldest supported Redis version."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """One Redis server, or one node of a cluster."""

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
        """Describe each setting that should change (``docs/registry.md``, Which Redis)."""
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


async def server_info(store: Store) -> ServerInfo:
    """Ask the server. Valkey reports both its own version and that of the compatible Redis."""
    with redis_errors():
        info: dict[str, Any] = await store.redis.info()  # Any: numbers and texts
    return ServerInfo(
        software=str(info.get("server_name", "redis")),
        version=str(info.get("valkey_version") or info["redis_version"]),
        mode=str(info.get("redis_mode", info.get("server_mode", "standalone"))),
        role=str(info["role"]),
        replicas=int(info.get("connected_slaves", 0)),
        used_bytes=int(info["used_memory"]),
        limit_bytes=int(info.get("maxmemory", 0)),
        eviction_policy=str(info.get("maxmemory_policy", "noeviction")),
        is_append_only=bool(info.get("aof_enabled", 0)),
    )
