"""What is served: tasks by version and residency, and which worker knows it.

The device thread flips the table between batches. A residency is freed only when no table names
it, every worker has acknowledged that table, and no row waits for it.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from patches.identity import Digest, TaskRef
from patches.records import ActiveTraffic, TaskEntry
from service.messages import BundleEntry, Handle, KeyEntry, TableUpdate
from service.scheduler import Worker
from service.slots import Residency

SILENT_AFTER_S = 3.0
"""A worker that says nothing for so long has died: nobody waits for its acknowledgement."""

IDLE_RESIDENCIES = 16
"""Residencies kept after no table names them, so that a rollback finds them on the device."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What the registry wants served, at one revision. An unchanged task is the same object.

    ``touched`` are the tasks that may differ from what was desired before; None: any may.
    """

    revision: int
    tasks: Mapping[TaskRef, TaskEntry] = field(default_factory=dict)
    keys: list[KeyEntry] = field(default_factory=list)
    touched: frozenset[TaskRef] | None = None


@dataclass(slots=True)
class WorkerState:
    """What is known of a worker; times are monotonic seconds."""

    seen_at: float
    acked_version: int = 0


def named(task: TaskEntry) -> set[Digest]:
    """Digests that the aliases and the traffic name."""
    versions = task.versions
    digests = {versions[number] for number in task.aliases.values()}
    return digests if task.traffic is None else digests | task.traffic.versions.keys()


class ServingTable:
    """Used by the device thread only."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.version = 0
        self.revision = 0
        self.workers: dict[Worker, WorkerState] = {}
        self._tasks: dict[TaskRef, TaskEntry] = {}
        self._wanted: Mapping[TaskRef, TaskEntry] = {}
        self._lagging: set[TaskRef] = set()
        self._withdrawn: dict[TaskRef, ActiveTraffic] = {}
        self._namings: Counter[str] = Counter()
        self._keys: list[KeyEntry] = []
        self._resident: dict[str, Residency] = {}
        self._idle: OrderedDict[str, int] = OrderedDict()  # digest -> version it left the table

    def admit(self, residency: Residency) -> None:
        """A loaded bundle waits here, unserved, for a table that names it."""
        self._resident[residency.digest] = residency
        self._idle[residency.digest] = self.version

    def is_resident(self, digest: str) -> bool:
        """True if the bundle lies on the device, served or not."""
        return digest in self._resident

    def missing(self) -> list[str]:
        """Digests that tasks want and the device has not."""
        lagging = (named(self._wanted[key]) for key in self._lagging)
        return sorted({d for digests in lagging for d in digests if d not in self._resident})

    def apply(self, desired: Desired) -> TableUpdate:
        """Serve what is desired as far as it is resident; elsewhere the old version goes on.

        Costs what was touched; if any task may differ, of the others it sees that they do not.
        """
        self.version += 1
        self.revision = desired.revision
        wanted = desired.tasks
        some = None if desired.touched is None else desired.touched | self._lagging
        changed, touched = self._take_over(wanted, wanted.keys() if some is None else some)
        left = self._tasks.keys() if some is None else some & self._tasks.keys()
        removed = [key for key in left if key not in wanted]
        for key in removed:
            touched |= self._serve(key, None)
            self._lagging.discard(key)
            self._withdrawn.pop(key, None)
        self._wanted = wanted
        keys = desired.keys if desired.keys != self._keys else None
        self._keys = desired.keys
        return self._update(changed, removed, touched, keys)

    def withdraw(self, key: TaskRef, traffic_revision: int) -> TableUpdate | None:
        """Let prod answer alone from now on, whatever the registry says of this very traffic.

        None if the task has other traffic, or none.
        """
        wanted = self._wanted.get(key)
        if wanted is None or wanted.traffic is None or wanted.traffic.revision != traffic_revision:
            return None
        self._withdrawn[key] = wanted.traffic
        self.version += 1
        served = self._served(wanted)
        return self._update([served], [], self._serve(key, served), None)

    def _update(
        self,
        changed: list[TaskEntry],
        removed: list[TaskRef],
        touched: set[str],
        keys: list[KeyEntry] | None,
    ) -> TableUpdate:
        added, dropped = self._announce(touched)
        return TableUpdate(
            epoch=self.epoch,
            version=self.version,
            revision=self.revision,
            is_full=False,
            bundles=[self._entry(digest) for digest in added],
            tasks=changed,
            removed_handles=[self._resident[digest].handle for digest in dropped],
            removed_tasks=removed,
            keys=keys,
        )

    def full(self) -> TableUpdate:
        """Everything, for a worker that knows nothing."""
        return TableUpdate(
            epoch=self.epoch,
            version=self.version,
            revision=self.revision,
            is_full=True,
            bundles=[self._entry(digest) for digest in sorted(self._namings)],
            tasks=list(self._tasks.values()),
            removed_handles=[],
            removed_tasks=[],
            keys=self._keys,
        )

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

    def _take_over(
        self, wanted: Mapping[TaskRef, TaskEntry], keys: Collection[TaskRef]
    ) -> tuple[list[TaskEntry], set[str]]:
        """Serve those of the tasks that are new, changed or lagging; the entries that differ, and
        their digests."""
        changed: list[TaskEntry] = []
        touched: set[str] = set()
        for key in keys:
            task = wanted.get(key)
            if task is None or (self._wanted.get(key) is task and key not in self._lagging):
                continue
            served = self._served(task)
            if served != self._tasks.get(key):
                changed.append(served)
                touched |= self._serve(key, served)
            lags = any(digest not in self._resident for digest in named(task))
            (self._lagging.add if lags else self._lagging.discard)(key)
        return changed, touched

    def _serve(self, key: TaskRef, task: TaskEntry | None) -> set[str]:
        """Put a task's entry in the place of its old one; the digests of both."""
        old = self._tasks.get(key)
        before = named(old) if old else set()
        after = named(task) if task else set()
        if task is not None:
            self._tasks[key] = task  # under the key that is there: it is the snapshot's as well
        else:
            self._tasks.pop(key, None)
        self._namings.update(after)
        self._namings.subtract(before)
        return before | after

    def _announce(self, touched: set[str]) -> tuple[list[str], list[str]]:
        """Digests that are named now and were not, and those that are no longer named.

        What is served is resident, and a residency that no task names is idle.
        """
        named = {digest for digest in touched if self._namings[digest] > 0}
        added = sorted(named & self._idle.keys())
        dropped = sorted(touched - named - self._idle.keys())
        for digest in added:
            del self._idle[digest]
        for digest in touched - named:
            del self._namings[digest]
        for digest in dropped:
            self._idle[digest] = self.version
        return added, dropped

    def _served(self, task: TaskEntry) -> TaskEntry:
        """The task as far as it is resident: an alias stays at its old version until the wanted
        one is there, and prod answers alone until the whole traffic is."""
        task = self._without_withdrawn(task)
        if all(digest in self._resident for digest in named(task)):
            return task
        old = self._tasks.get(task.ref)
        aliases, versions = {}, task.versions
        for alias, number in task.aliases.items():
            if versions[number] in self._resident:
                aliases[alias] = number
            elif old is not None and alias in old.aliases:
                aliases[alias] = old.aliases[alias]
                versions[old.aliases[alias]] = old.versions[old.aliases[alias]]
        traffic = task.traffic
        if traffic is not None and not traffic.versions.keys() <= self._resident.keys():
            traffic = None
        return TaskEntry.of(task.ref, task.revision, aliases, versions, traffic)

    def _without_withdrawn(self, task: TaskEntry) -> TaskEntry:
        if not self._withdrawn:
            return task
        if task.traffic is not None and task.traffic == self._withdrawn.get(task.ref):
            return msgspec.structs.replace(task, traffic=None)
        self._withdrawn.pop(task.ref, None)
        return task

    def _entry(self, digest: str) -> BundleEntry:
        residency = self._resident[digest]
        spec = residency.form.head
        return BundleEntry(
            handle=residency.handle,
            digest=residency.digest,
            kind=spec.kind,
            outputs=spec.outputs,
            labels=residency.labels,
            threshold=residency.threshold,
            catalog_path=residency.catalog_path,
        )
