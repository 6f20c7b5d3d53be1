"""What this worker serves: a mirror of the device process's table, changed only by its messages."""

from collections.abc import Iterable
from dataclasses import dataclass

from patches.errors import TaskNotFound
from patches.identity import Digest, TenantId, format_digest
from service.errors import BundleNotReady, TaskNotActive
from service.messages import BundleEntry, Handle, TableUpdate, TaskEntry

PROD = "prod"
"""The alias that predictions are answered by."""


@dataclass(frozen=True, slots=True)
class ServedTask:
    """A task resolved to one version: all that a request needs until its answer is encoded."""

    tenant: str
    task: str
    version: int
    alias: str
    bundle: BundleEntry

    @property
    def digest(self) -> str:
        """The bundle's digest as shown outside."""
        return format_digest(Digest(self.bundle.digest))


class TaskTable:
    """Tasks, residencies and revision of one device process, swapped between requests.

    Lives on the event loop: what is resolved without an ``await`` in between is one snapshot.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.version = 0
        self.revision = 0
        self._tasks: dict[tuple[str, str], TaskEntry] = {}
        self._bundles: dict[Handle, BundleEntry] = {}
        self._by_digest: dict[str, BundleEntry] = {}

    def apply(self, update: TableUpdate) -> None:
        """Take over a change; a full one replaces everything known so far."""
        if update.is_full:
            self._tasks, self._bundles, self._by_digest = {}, {}, {}
        for handle in update.removed_handles:
            self._forget(handle)
        for bundle in update.bundles:
            self._bundles[bundle.handle] = bundle
            self._by_digest[bundle.digest] = bundle
        for tenant, task in update.removed_tasks:
            self._tasks.pop((tenant, task), None)
        for entry in update.tasks:
            self._tasks[entry.tenant, entry.task] = entry
        self.epoch = update.epoch
        self.version = update.version
        self.revision = update.revision

    def _forget(self, handle: Handle) -> None:
        bundle = self._bundles.pop(handle, None)
        if bundle is not None and self._by_digest.get(bundle.digest) is bundle:
            del self._by_digest[bundle.digest]

    def entry(self, tenant: str, task: str) -> TaskEntry | None:
        """The task as the registry has it; None if the tenant has no such task."""
        return self._tasks.get((tenant, task))

    def entries(self, tenant: str) -> Iterable[TaskEntry]:
        """The tenant's tasks in the order of their names."""
        owned = (entry for entry in self._tasks.values() if entry.tenant == tenant)
        return sorted(owned, key=lambda entry: entry.task)

    def resolve(self, tenant: TenantId, task: str, alias: str = PROD) -> ServedTask:
        """The version that answers now; TaskNotFound, TaskNotActive or BundleNotReady if none."""
        entry = self._tasks.get((tenant, task))
        if entry is None:
            raise TaskNotFound(task)
        version = entry.aliases.get(alias)
        if version is None:
            raise TaskNotActive(task)
        bundle = self._by_digest.get(entry.versions.get(version, ""))
        if bundle is None:
            raise BundleNotReady(f"of task {task!r}")
        return ServedTask(tenant, task, version, alias, bundle)

    def resident(self, digest: str) -> BundleEntry | None:
        """The current residency of a bundle; None if the device does not hold it."""
        return self._by_digest.get(digest)
