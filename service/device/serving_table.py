"""What is served: the actual state that follows the desired one, and which worker knows it.

The device thread changes the table between batches. A residency is freed only when the table does
not name it, every worker has acknowledged that, and no row waits for it.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from peterrec.patches.identity import Digest, TaskRef
from peterrec.patches.registry.records import ActiveTraffic, TaskEntry
from peterrec.patches.registry.traffic import PROD
from peterrec.service.device.queue import Worker
from peterrec.service.device.slots import Residency
from peterrec.service.protocol.messages import (
    BundleEntry,
    Handle,
    KeyEntry,
    ProdBundles,
    RefusedBundle,
    TableUpdate,
    UnfitBundle,
)
from peterrec.service.protocol.quota_table import ServedTenant

SILENT_AFTER_S = 3.0
"""Seconds without a message after which a worker counts as dead and is not waited for."""

UNFIT_NAMED = 10
"""Refused `prod` bundles that are named; the count that is told is always exact."""

IDLE_RESIDENCIES = 16
"""Residencies that are kept although no task names them: a rollback finds them on the device."""


@dataclass(frozen=True, slots=True)
class DesiredState:
    """What the registry wants served, at one revision. An unchanged task is the same object.

    ``touched`` are the tasks that may differ from the desired state before; None means any task.
    ``refused`` are bundles that tasks name and that will never be loaded here, ``failing`` is how
    many others could not be loaded yet. ``weights`` are those of the tenants whose part of the
    device is not 1.
    """

    revision: int
    tasks: Mapping[TaskRef, TaskEntry] = field(default_factory=dict)
    keys: list[KeyEntry] = field(default_factory=list)
    touched: frozenset[TaskRef] | None = None
    refused: list[RefusedBundle] = field(default_factory=list)
    failing: int = 0
    tenants: list[ServedTenant] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class WorkerState:
    """When a worker was last heard of, in monotonic seconds, and the table that it acknowledged."""

    seen_at: float
    acked_version: int = 0


def named(task: TaskEntry) -> set[Digest]:
    """Return the digests that a task's aliases and traffic name."""
    versions = task.versions
    digests = {versions[number] for number in task.aliases.values()}
    return digests if task.traffic is None else digests | task.traffic.versions.keys()


def entry_of(residency: Residency) -> BundleEntry:
    """Return what a worker needs to bind rows to a residency and to answer with it."""
    spec = residency.form.head
    return BundleEntry(
        handle=residency.handle,
        digest=residency.digest,
        kind=spec.kind,
        outputs=spec.outputs,
        labels=residency.labels,
        threshold=residency.threshold,
        catalog_path=residency.path if residency.catalog else "",
        scale=residency.scale,
        shift=residency.shift,
        unit=residency.unit,
        has_table=residency.table is not None,
        reach=residency.reach,
        titles=residency.titles,
        prior=residency.prior,
        backbone=residency.backbone,
    )


class ServingTable:
    """The tasks as they are served, and the workers. Used by the device thread only.

    ``residents`` are the bundles on the device, which their store owns. Those that no task names
    are idle: a loaded bundle must be added as such before a state that names it.
    """

    def __init__(self, epoch: int, residents: Mapping[Digest, Residency]) -> None:
        self.epoch = epoch
        self._residents = residents
        self.version = 0
        self.revision = 0
        self.workers: dict[Worker, WorkerState] = {}
        self._desired: Mapping[TaskRef, TaskEntry] = {}
        self._overrides: dict[TaskRef, TaskEntry] = {}  # served entries that are not as desired
        self._pending: set[TaskRef] = set()  # tasks that name bundles which are not resident yet
        self._withdrawn: dict[TaskRef, ActiveTraffic] = {}
        self._references: dict[Digest, int] = {}  # tasks that name a digest, if more than one
        self._with_prod = 0  # desired tasks whose prod names a version
        self.prod = ProdBundles()
        self._keys: list[KeyEntry] = []
        self._refused: list[RefusedBundle] = []
        self._failing = 0
        self._tenants: list[ServedTenant] = []
        self._weights: dict[str, float] = {}
        self._idle: dict[Digest, int] = {}  # digest -> table version without it, longest idle first
        self._forgotten: set[Digest] = set()  # those among them that must be freed

    def add(self, digest: Digest) -> None:
        """Note a loaded bundle as idle; the next state may name it."""
        self._idle[digest] = self.version

    def missing(self) -> list[str]:
        """Return the digests that tasks name and the device does not hold."""
        pending = (named(self._desired[key]) for key in self._pending)
        return sorted({d for digests in pending for d in digests if d not in self._residents})

    def reconcile(self, desired: DesiredState) -> TableUpdate:
        """Serve the desired state as far as it is resident; elsewhere keep the version before.

        Takes time for the touched and pending tasks only; without ``touched``, every task is
        compared with the state before.
        """
        self.version += 1
        self.revision = desired.revision
        tasks, before = desired.tasks, self._desired
        some = None if desired.touched is None else desired.touched | self._pending
        references: Counter[Digest] = Counter()
        changed = self._change(tasks, tasks.keys() if some is None else some, references)
        left = before.keys() if some is None else some & before.keys()
        removed = [key for key in left if key not in tasks]
        for key in removed:
            references.subtract(named(self._overrides.pop(key, before[key])))
            self._pending.discard(key)
            self._withdrawn.pop(key, None)
            self._with_prod -= PROD in before[key].aliases
        self._desired = tasks
        keys = desired.keys if desired.keys != self._keys else None
        refused = desired.refused if desired.refused != self._refused else None
        tenants = desired.tenants if desired.tenants != self._tenants else None
        self._keys, self._refused = desired.keys, desired.refused
        self._tenants, self._failing = desired.tenants, desired.failing
        self.prod = self._prod_bundles()
        weights = desired.weights if desired.weights != self._weights else None
        self._weights = desired.weights
        update = self._update(changed, removed, references)
        return msgspec.structs.replace(
            update, keys=keys, refused=refused, tenants=tenants, weights=weights
        )

    def withdraw(self, key: TaskRef, traffic_revision: int) -> TableUpdate | None:
        """Let prod answer alone from now on, even while the registry still has this traffic.

        Returns None if the task has other traffic, or none.
        """
        task = self._desired.get(key)
        if task is None or task.traffic is None or task.traffic.revision != traffic_revision:
            return None
        self._withdrawn[key] = task.traffic
        self.version += 1
        references: Counter[Digest] = Counter()
        served = self._servable(task)
        self._serve(task, served, references)
        return self._update([served], [], references)

    def _update(
        self,
        changed: list[TaskEntry],
        removed: list[TaskRef],
        references: Mapping[Digest, int],
    ) -> TableUpdate:
        added, dropped = self._count(references)
        return TableUpdate(
            epoch=self.epoch,
            version=self.version,
            revision=self.revision,
            is_full=False,
            bundles=[entry_of(self._residents[digest]) for digest in added],
            tasks=changed,
            removed_bundles=dropped,
            removed_tasks=removed,
        )

    def full(self) -> TableUpdate:
        """Return the whole table, for a worker that knows nothing."""
        tasks = [self._overrides.get(key, entry) for key, entry in self._desired.items()]
        digests = {digest for task in tasks for digest in named(task)}
        return TableUpdate(
            epoch=self.epoch,
            version=self.version,
            revision=self.revision,
            is_full=True,
            bundles=[entry_of(self._residents[digest]) for digest in sorted(digests)],
            tasks=tasks,
            removed_bundles=[],
            removed_tasks=[],
            keys=self._keys,
            refused=self._refused,
            tenants=self._tenants,
            weights=self._weights,
        )

    def hear(self, worker: Worker, now: float) -> WorkerState:
        """Note that a worker is alive, and return its state."""
        state = self.workers.setdefault(worker, WorkerState(now))
        state.seen_at = now
        return state

    def forget_silent(self, now: float) -> None:
        """Forget workers that count as dead, so that nothing waits for them."""
        silent = [w for w, state in self.workers.items() if now - state.seen_at > SILENT_AFTER_S]
        for worker in silent:
            del self.workers[worker]

    def is_acknowledged(self, version: int) -> bool:
        """True if every worker binds rows by this table version or a newer one."""
        return all(state.acked_version >= version for state in self.workers.values())

    def take_idle(self, waited_for: Callable[[], Collection[Handle]], keep: int) -> list[Residency]:
        """Take the longest idle residencies beyond ``keep`` that no worker and no row can need.

        Those that are to be forgotten are taken in any case. The caller must free them.
        ``waited_for`` returns the residencies that rows wait for.
        """
        freed: list[Residency] = []
        if len(self._idle) <= keep and not self._forgotten:
            return freed
        waiting = waited_for()
        for digest, version in list(self._idle.items()):
            residency = self._residents[digest]
            if len(self._idle) <= keep and digest not in self._forgotten:
                continue
            if self.is_acknowledged(version) and residency.handle not in waiting:
                del self._idle[digest]
                self._forgotten.discard(digest)
                freed.append(residency)
        return freed

    def forget_idle(self) -> None:
        """Keep none of the residencies that are idle now, unless a task names them again."""
        self._forgotten.update(self._idle)

    @property
    def is_forgetting(self) -> bool:
        """True while residencies that are to be forgotten are on the device."""
        return bool(self._forgotten)

    def _change(
        self,
        tasks: Mapping[TaskRef, TaskEntry],
        keys: Collection[TaskRef],
        references: Counter[Digest],
    ) -> list[TaskEntry]:
        """Serve the tasks that are new, changed or pending; return the entries that differ."""
        changed: list[TaskEntry] = []
        for key in keys:
            task = tasks.get(key)
            if task is None or (self._desired.get(key) is task and key not in self._pending):
                continue
            before = self._desired.get(key)
            self._with_prod += (PROD in task.aliases) - (
                before is not None and PROD in before.aliases
            )
            served = self._servable(task)
            if served != self._actual(key):
                changed.append(served)
            self._serve(task, served, references)
            is_pending = any(digest not in self._residents for digest in named(task))
            (self._pending.add if is_pending else self._pending.discard)(key)
        return changed

    def _actual(self, key: TaskRef) -> TaskEntry | None:
        """The task's entry as it was served until now."""
        return self._overrides.get(key) or self._desired.get(key)

    def _serve(self, desired: TaskEntry, served: TaskEntry, references: Counter[Digest]) -> None:
        """Replace a task's entry, and count in ``references`` how its named digests change."""
        key = served.ref
        old = self._actual(key)
        references.update(named(served))
        references.subtract(named(old) if old else ())
        if served is desired:
            self._overrides.pop(key, None)
        else:
            self._overrides[key] = served

    def _count(self, references: Mapping[Digest, int]) -> tuple[list[Digest], list[Digest]]:
        """Change the reference counts; return the digests newly named, and those no longer named.

        Everything served is resident, and a residency that no task names is idle.
        """
        added: list[Digest] = []
        dropped: list[Digest] = []
        for digest in sorted(references):
            before = 0 if digest in self._idle else self._references.pop(digest, 1)
            after = before + references[digest]
            if after > 1:
                self._references[digest] = after
            if after and not before:
                added.append(digest)
                del self._idle[digest]
                self._forgotten.discard(digest)
            elif before and not after:
                dropped.append(digest)
                self._idle[digest] = self.version
        return added, dropped

    @property
    def unservable(self) -> int:
        """The number of registered bundles that this replica refuses, or can't load for now."""
        return len(self._refused) + self._failing

    def _prod_bundles(self) -> ProdBundles:
        """Look at the pending tasks: the `prod` of every other task is resident."""
        codes = {refused.digest: refused.codes for refused in self._refused}
        unanswered: list[UnfitBundle] = []
        for key in self._pending:
            task = self._desired[key]
            number = task.aliases.get(PROD)
            if number is not None and PROD not in self._overrides.get(key, task).aliases:
                digest = task.versions[number]
                found = codes.get(digest, [])
                unanswered.append(UnfitBundle(key.tenant, key.task, number, digest, found))
        unfit = [each for each in unanswered if each.digest in codes]
        some = heapq.nsmallest(UNFIT_NAMED, unfit, key=lambda each: (each.tenant, each.task))
        answering = self._with_prod - len(unanswered)
        return ProdBundles(self._with_prod, answering, len(unfit), some)

    def answering(self, task: TaskEntry) -> tuple[str, int] | None:
        """Return the kind and the number of the version that prod of a served task names."""
        number = task.aliases.get(PROD)
        digest = None if number is None else task.digest_of(number)
        found = None if digest is None else self._residents.get(digest)
        return None if found is None or number is None else (found.form.head.kind, number)

    def _servable(self, task: TaskEntry) -> TaskEntry:
        """Return the task as far as it is resident.

        An alias keeps its old version until the desired one is resident; prod answers alone until
        all versions of the traffic are.
        """
        task = self._without_withdrawn(task)
        if all(digest in self._residents for digest in named(task)):
            return task
        old = self._actual(task.ref)
        aliases, missing, versions = {}, {}, task.versions
        for alias, number in task.aliases.items():
            if versions[number] in self._residents:
                aliases[alias] = number
            elif old is not None and alias in old.aliases:
                aliases[alias] = old.aliases[alias]
                versions[old.aliases[alias]] = old.versions[old.aliases[alias]]
            else:
                missing[alias] = number
        traffic = task.traffic
        if traffic is not None and not traffic.versions.keys() <= self._residents.keys():
            traffic = None
        return TaskEntry.of(
            task.ref,
            task.revision,
            aliases,
            versions,
            traffic,
            missing,
            task.availability,
            task.is_sensitive,
        )

    def _without_withdrawn(self, task: TaskEntry) -> TaskEntry:
        if not self._withdrawn:
            return task
        if task.traffic is not None and task.traffic == self._withdrawn.get(task.ref):
            return msgspec.structs.replace(task, traffic=None)
        self._withdrawn.pop(task.ref, None)
        return task
