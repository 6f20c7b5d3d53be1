"""Whether a version that this server does not load is registered at all."""

import asyncio
from collections.abc import Collection

from cachetools import LRUCache

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import TaskNotFound, VersionNotFound
from peterrec.patches.identity import TaskId, TenantId
from peterrec.patches.registry.registry import Registry
from peterrec.service.errors import VersionNotServed
from peterrec.service.predict.task_table import TaskTable

READ_TIMEOUT_S = 0.5
"""Seconds that the registry may take to say which versions there are."""

TASKS_KEPT = 256
"""Tasks whose versions are kept until they change, so that few refusals ask the registry."""


class RegisteredVersions:
    """Tells a version that is registered, but not loaded, from one that does not exist.

    Workers know the loaded versions only. This asks the registry, and only for calls that are
    refused anyway; without an answer in time, the refusal stays as it is. Lives on the event loop.
    """

    def __init__(self, table: TaskTable, registry: Registry) -> None:
        self._table = table
        self._registry = registry
        self._known: LRUCache[tuple[str, str, int], Collection[str]] = LRUCache(TASKS_KEPT)

    async def judged(self, tenant: TenantId, error: PeterRecError) -> PeterRecError:
        """Return VersionNotFound instead of VersionNotServed if there is no such version."""
        if not isinstance(error, VersionNotServed):
            return error
        known = await self._read(tenant, TaskId(error.task))
        is_known = known is None or error.version.removeprefix("sha256:") in known
        return error if is_known else VersionNotFound(error.task, error.version, error.served)

    async def _read(self, tenant: TenantId, task: TaskId) -> Collection[str] | None:
        """Return the numbers and digests of all versions of a task; None if that is not known."""
        entry = self._table.entry(tenant, task)
        key = (tenant, task, 0 if entry is None else entry.revision)
        known = self._known.get(key)
        if known is None:
            try:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    detail = await self._registry.get_task(tenant, task)
            except TaskNotFound:
                return ()
            except (TimeoutError, PeterRecError):
                return None
            numbers = {str(each.version) for each in detail.versions}
            known = self._known[key] = numbers | {each.digest for each in detail.versions}
        return known
