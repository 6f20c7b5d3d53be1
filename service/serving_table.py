"""What is served: tasks by version and residency, and which worker knows it.

The device thread flips the table between batches. A residency is freed only when no table names
it, every worker has acknowledged that table, and no row waits for it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from service.messages import BundleEntry, Handle, KeyEntry, TableUpdate, TaskEntry
from service.scheduler import Worker
from service.slots import Residency

TaskKey = tuple[str, str]

SILENT_AFTER_S = 3.0
"""A worker that says nothing for so long has died: nobody waits for its acknowledgement."""

IDLE_RESIDENCIES = 16
"""Residencies kept after no table names them, so that a rollback finds them on the device."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What the registry wants served, at one revision."""

    revision: int
    tasks: list[TaskEntry] = field(default_factory=list)
    keys: list[KeyEntry] = field(default_factory=list)

    def digests(self) -> set[str]:
        """Digests that an alias names: these must be resident."""
        return {digest for task in self.tasks for digest in aliased(task).values()}


@dataclass(slots=True)
class WorkerState:
    """What is known of a worker; times are monotonic seconds."""

    seen_at: float
    acked_version: int = 0


def aliased(task: TaskEntry) -> dict[str, str]:
    """Digest of each alias."""
    return {alias: task.versions[number] for alias, number in task.aliases.items()}


class ServingTable:
    """Used by the device thread only."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.version = 0
        self.revision = 0
        self.workers: dict[Worker, WorkerState] = {}
        self._tasks: dict[TaskKey, TaskEntry] = {}
        self._keys: list[KeyEntry] = []
        self._resident: dict[str, Residency] = {}
        self._announced: set[str] = set()
        self._idle: OrderedDict[str, int] = OrderedDict()  # digest -> version it left the table

    def admit(self, residency: Residency) -> None:
        """A loaded bundle waits here, unserved, for a table that names it."""
        self._resident[residency.digest] = residency
        self._idle[residency.digest] = self.version

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that are not on the device."""
        return sorted(digest for digest in digests if digest not in self._resident)

    def apply(self, desired: Desired) -> TableUpdate:
        """Serve what is desired as far as it is resident; elsewhere the old version goes on."""
        before = self._tasks
        self._tasks = {(t.tenant, t.task): self._served(t) for t in desired.tasks}
        changed = [entry for key, entry in self._tasks.items() if before.get(key) != entry]
        removed_tasks = [key for key in before if key not in self._tasks]
        named = {digest for task in self._tasks.values() for digest in aliased(task).values()}
        added, dropped = named - self._announced, self._announced - named
        self.version += 1
        self.revision = desired.revision
        for digest in added:
            self._idle.pop(digest, None)
        for digest in dropped:
            self._idle[digest] = self.version
        keys = desired.keys if desired.keys != self._keys else None
        self._announced, self._keys = named, desired.keys
        return TableUpdate(
            epoch=self.epoch,
            version=self.version,
            revision=self.revision,
            is_full=False,
            bundles=[self._entry(digest) for digest in sorted(added)],
            tasks=changed,
            removed_handles=[self._resident[digest].handle for digest in sorted(dropped)],
            removed_tasks=removed_tasks,
            keys=keys,
        )

    def full(self) -> TableUpdate:
        """Everything, for a worker that knows nothing."""
        return TableUpdate(
            epoch=self.epoch,
            version=self.version,
            revision=self.revision,
            is_full=True,
            bundles=[self._entry(digest) for digest in sorted(self._announced)],
            tasks=list(self._tasks.values()),
            removed_handles=[],
            removed_tasks=[],
            keys=self._keys,
        )

    def task_keys(self) -> list[TaskKey]:
        """Every served (tenant, task)."""
        return list(self._tasks)

    def hear(self, worker: Worker, now: float) -> WorkerState:
        """Note that a worker lives."""
        state = self.workers.setdefault(worker, WorkerState(now))
        state.seen_at = now
        return state

    def forget_silent(self, now: float) -> None:
        """Stop waiting for workers that have died."""
        silent = [w for w, state in self.workers.items() if now - state.seen_at > SILENT_AFTER_S]
        for worker in silent:
            del self.workers[worker]

    def is_acknowledged(self, version: int) -> bool:
        """True if every living worker admits rows by this table version or a newer one."""
        return all(state.acked_version >= version for state in self.workers.values())

    def take_idle(self, is_waiting: Callable[[Handle], bool], keep: int) -> list[Residency]:
        """The longest idle residencies beyond ``keep`` that no worker and no row can need."""
        freed: list[Residency] = []
        for digest, version in list(self._idle.items()):
            residency = self._resident[digest]
            if len(self._idle) <= keep:
                break
            if self.is_acknowledged(version) and not is_waiting(residency.handle):
                del self._idle[digest]
                freed.append(self._resident.pop(digest))
        return freed

    def _served(self, task: TaskEntry) -> TaskEntry:
        """The task with each alias at a resident version: the wanted one, else the old one."""
        old = self._tasks.get((task.tenant, task.task))
        aliases, versions = {}, dict(task.versions)
        for alias, number in task.aliases.items():
            if task.versions[number] in self._resident:
                aliases[alias] = number
            elif old is not None and alias in old.aliases:
                aliases[alias] = old.aliases[alias]
                versions[old.aliases[alias]] = old.versions[old.aliases[alias]]
        return msgspec.structs.replace(task, aliases=aliases, versions=versions)

    def _entry(self, digest: str) -> BundleEntry:
        residency = self._resident[digest]
        spec = residency.head.spec
        return BundleEntry(
            handle=residency.handle,
            digest=digest,
            kind=spec.kind,
            outputs=spec.outputs,
            labels=list(residency.labels),
            threshold=residency.threshold,
            catalog_path=residency.catalog_path,
        )
