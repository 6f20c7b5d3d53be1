"""What is served: tasks by version and residency, and which worker knows it.

The device thread flips the table between batches. A residency is freed only when no table names
it, every worker has acknowledged that table, and no row waits for it.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from peterrec.patches.identity import Digest, TaskRef
from peterrec.patches.registry.records import ActiveTraffic, TaskEntry
from peterrec.service.device.queue import Worker
from peterrec.service.device.slots import Residency
from peterrec.service.protocol.messages import BundleEntry, Handle, KeyEntry, TableUpdate

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
        self._wanted: Mapping[TaskRef, TaskEntry] = {}
        self._otherwise: dict[TaskRef, TaskEntry] = {}  # what is served of a task, if not as wanted
        self._lagging: set[TaskRef] = set()
        self._withdrawn: dict[TaskRef, ActiveTraffic] = {}
        self._namings: dict[Digest, int] = {}  # tasks that name a digest, if there are several
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
        wanted, before = desired.tasks, self._wanted
        some = None if desired.touched is None else desired.touched | self._lagging
        namings: Counter[Digest] = Counter()
        changed = self._take_over(wanted, wanted.keys() if some is None else some, namings)
        left = before.keys() if some is None else some & before.keys()
        removed = [key for key in left if key not in wanted]
        for key in removed:
            namings.subtract(named(self._otherwise.pop(key, before[key])))
            self._lagging.discard(key)
            self._withdrawn.pop(key, None)
        self._wanted = wanted
        keys = desired.keys if desired.keys != self._keys else None
        self._keys = desired.keys
        return self._update(changed, removed, namings, keys)

    def withdraw(self, key: TaskRef, traffic_revision: int) -> TableUpdate | None:
        """Let prod answer alone from now on, whatever the registry says of this very traffic.

        None if the task has other traffic, or none.
        """
        wanted = self._wanted.get(key)
        if wanted is None or wanted.traffic is None or wanted.traffic.revision != traffic_revision:
            return None
        self._withdrawn[key] = wanted.traffic
        self.version += 1
        namings: Counter[Digest] = Counter()
        served = self._served(wanted)
        self._serve(wanted, served, namings)
        return self._update([served], [], namings, None)

    def _update(
        self,
        changed: list[TaskEntry],
        removed: list[TaskRef],
        namings: Mapping[Digest, int],
        keys: list[KeyEntry] | None,
    ) -> TableUpdate:
        added, dropped = self._announce(namings)
        return TableUpdate(
            epoch=self.epoch,
            version=self.version,
            revision=self.revision,
            is_full=False,
            bundles=[self._entry(digest) for digest in added],
            tasks=changed,
            removed_bundles=dropped,
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
            bundles=[self._entry(d) for d in sorted(self._resident.keys() - self._idle.keys())],
            tasks=[self._otherwise.get(key, entry) for key, entry in self._wanted.items()],
            removed_bundles=[],
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
        self,
        wanted: Mapping[TaskRef, TaskEntry],
        keys: Collection[TaskRef],
        namings: Counter[Digest],
    ) -> list[TaskEntry]:
        """Serve those of the tasks that are new, changed or lagging; the entries that differ."""
        changed: list[TaskEntry] = []
        for key in keys:
            task = wanted.get(key)
            if task is None or (self._wanted.get(key) is task and key not in self._lagging):
                continue
            served = self._served(task)
            if served != self._serving(key):
                changed.append(served)
            self._serve(task, served, namings)
            lags = any(digest not in self._resident for digest in named(task))
            (self._lagging.add if lags else self._lagging.discard)(key)
        return changed

    def _serving(self, key: TaskRef) -> TaskEntry | None:
        """What was served of the task until now."""
        return self._otherwise.get(key) or self._wanted.get(key)

    def _serve(self, wanted: TaskEntry, served: TaskEntry, namings: Counter[Digest]) -> None:
        """Put a task's entry in the place of its old one; count what it names more or less."""
        key = served.ref
        old = self._serving(key)
        namings.update(named(served))
        namings.subtract(named(old) if old else ())
        if served is wanted:
            self._otherwise.pop(key, None)
        else:
            self._otherwise[key] = served

    def _announce(self, namings: Mapping[Digest, int]) -> tuple[list[Digest], list[Digest]]:
        """Digests that are named now and were not, and those that are no longer named.

        What is served is resident, and a residency that no task names is idle.
        """
        added: list[Digest] = []
        dropped: list[Digest] = []
        for digest in sorted(namings):
            before = 0 if digest in self._idle else self._namings.pop(digest, 1)
            after = before + namings[digest]
            if after > 1:
                self._namings[digest] = after
            if after and not before:
                added.append(digest)
                del self._idle[digest]
            elif before and not after:
                dropped.append(digest)
                self._idle[digest] = self.version
        return added, dropped

    def _served(self, task: TaskEntry) -> TaskEntry:
        """The task as far as it is resident: an alias stays at its old version until the wanted
        one is there, and prod answers alone until the whole traffic is."""
        task = self._without_withdrawn(task)
        if all(digest in self._resident for digest in named(task)):
            return task
        old = self._serving(task.ref)
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
