"""What this worker serves: a copy of the device process's table, changed by its messages only."""

import asyncio
from collections.abc import Iterable

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import AliasNotFound, InvalidDigest, TaskNotFound
from peterrec.patches.identity import Digest, TaskId, TaskRef, TenantId, parse_digest
from peterrec.patches.registry.records import ActiveTraffic, TaskEntry
from peterrec.patches.registry.traffic import PROD
from peterrec.service.errors import (
    BundleNotReady,
    BundleUnservable,
    DeviceUnavailable,
    TaskNotActive,
    VersionNotServed,
)
from peterrec.service.protocol.messages import BundleEntry, RefusedBundle, TableUpdate
from peterrec.service.protocol.served_task import Role, ServedTask, Split

VersionName = int | str
"""A version by its number, its digest, or an alias that names it."""

MAX_DIGITS = 18
"""Longer decimal texts are not version numbers: 18 digits always fit a signed 64-bit integer."""


class TaskTable:
    """Tasks, resident bundles and revision of one device process.

    Lives on the event loop: look-ups without an ``await`` between them see one snapshot.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.version = 0
        self.revision = 0
        self._tasks: dict[str, dict[str, TaskEntry]] = {}  # by tenant and name
        self._bundles: dict[str, BundleEntry] = {}  # by digest
        self._refused: dict[str, RefusedBundle] = {}  # by digest
        self._splits: dict[tuple[str, str], Split] = {}
        self._changed = asyncio.Event()

    def apply(self, update: TableUpdate) -> None:
        """Apply a change; a full one replaces everything known so far."""
        if update.is_full:
            self._tasks, self._bundles = {}, {}
        for digest in update.removed_bundles:
            self._bundles.pop(digest, None)
        for bundle in update.bundles:
            self._bundles[bundle.digest] = bundle.shared()
        for tenant, task in update.removed_tasks:
            self._tasks.get(tenant, {}).pop(task, None)
        for entry in update.tasks:
            self._tasks.setdefault(entry.tenant, {})[entry.task] = entry.shared(self._own)
        if update.refused is not None:
            self._refused = {refused.digest: refused for refused in update.refused}
        self._splits.clear()
        self.epoch = update.epoch
        self.version = update.version
        self.revision = update.revision
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def turn(self, timeout_s: float) -> bool:
        """Wait for the next change; False if there was none in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _own(self, digest: Digest) -> Digest:
        """Return the equal text that the bundle holds, so that each digest is in memory once."""
        bundle = self._bundles.get(digest)
        return digest if bundle is None else bundle.digest

    def entry(self, tenant: str, task: str) -> TaskEntry | None:
        """Return the task as it is served; None if the tenant has no such task."""
        return self._tasks.get(tenant, {}).get(task)

    def existing(self, tenant: str, task: str) -> TaskEntry:
        """Return the task as it is served.

        Raises TaskNotFound, or DeviceUnavailable before the first table has arrived.
        """
        entry = self.entry(tenant, task)
        if entry is None:
            raise TaskNotFound(task) if self.epoch else DeviceUnavailable()
        return entry

    def entries(self, tenant: str) -> Iterable[TaskEntry]:
        """Return all of the tenant's tasks in the order of their names, answered or not."""
        return sorted(self._tasks.get(tenant, {}).values(), key=lambda entry: entry.task)

    def resolve(
        self, tenant: TenantId, task: str, version: VersionName | None = None
    ) -> ServedTask:
        """Return what answers now: prod with its traffic, or the version that is asked for.

        Raises TaskNotFound, TaskNotActive, VersionNotServed, AliasNotFound, BundleNotReady or
        BundleUnservable, and DeviceUnavailable before the first table has arrived.
        """
        entry = self.existing(tenant, task)
        if version is not None:
            return self._pinned(entry, version)
        number = _named_by(entry, PROD)
        if number is None:
            raise TaskNotActive(task)
        bundle = self._bundle(entry, number)
        split = None if entry.traffic is None else self._split(entry, entry.traffic)
        return ServedTask(
            tenant,
            task,
            number,
            PROD,
            bundle,
            Role.PROD,
            split,
            entry.availability,
            entry.is_sensitive,
        )

    def resolve_prod(self, tenant: TenantId, task: str) -> ServedTask | None:
        """Return what answers now; None if nothing does."""
        try:
            return self.resolve(tenant, task)
        except PeterRecError:
            return None

    def resident(self, digest: str) -> BundleEntry | None:
        """Return a bundle's entry; None if no task names it or the device does not hold it."""
        return self._bundles.get(digest)

    def _bundle(self, entry: TaskEntry, number: int) -> BundleEntry:
        digest = entry.digest_of(number)
        bundle = None if digest is None else self._bundles.get(digest)
        if bundle is not None:
            return bundle
        refused = None if digest is None else self._refused.get(digest)
        if refused is None:
            raise BundleNotReady(f"of task {entry.task!r}")
        raise BundleUnservable(entry.task, number, refused.reason)

    def _split(self, entry: TaskEntry, active: ActiveTraffic) -> Split | None:
        """Return the task's traffic, made once per table for all requests.

        None if one of its bundles is not resident: a missing canary must not keep prod from
        answering.
        """
        key = (entry.tenant, entry.task)
        split = self._splits.get(key)
        if split is None and active.versions.keys() <= self._bundles.keys():
            split = self._splits[key] = self._make_split(entry, active)
        return split

    def _make_split(self, entry: TaskEntry, active: ActiveTraffic) -> Split:
        def served(digest: Digest, role: Role) -> ServedTask:
            number = active.versions[digest]
            bundle = self._bundle(entry, number)
            return ServedTask(
                entry.tenant,
                entry.task,
                number,
                None,
                bundle,
                role,
                None,
                entry.availability,
                entry.is_sensitive,
            )

        traffic = active.traffic
        return Split(
            ref=TaskRef(TenantId(entry.tenant), TaskId(entry.task)),
            traffic=traffic,
            revision=active.revision,
            canaries={each.digest: served(each.digest, Role.CANARY) for each in traffic.canary},
            shadows=tuple(served(digest, Role.SHADOW) for digest in traffic.shadow),
        )

    def _pinned(self, entry: TaskEntry, wanted: VersionName) -> ServedTask:
        number, alias = _find(entry, wanted)
        bundle = self._bundle(entry, number)
        return ServedTask(
            entry.tenant,
            entry.task,
            number,
            alias,
            bundle,
            Role.PINNED,
            None,
            entry.availability,
            entry.is_sensitive,
        )


def _find(entry: TaskEntry, wanted: VersionName) -> tuple[int, str | None]:
    """Return the number of the version that is asked for, and the alias if one was given."""
    text = str(wanted)
    if text.isdecimal():
        if len(text) <= MAX_DIGITS and int(text) in entry.numbers:
            return int(text), None
        raise _not_served(entry, text)
    number = _named_by(entry, text)
    if number is not None:
        return number, text
    try:
        digest = parse_digest(text)
    except InvalidDigest:
        raise AliasNotFound(entry.task, text[:128]) from None
    for number, found in entry.versions.items():
        if found == digest:
            return number, None
    raise _not_served(entry, text)


def _named_by(entry: TaskEntry, alias: str) -> int | None:
    """Return the number of the version that an alias names, loaded or not."""
    number = entry.aliases.get(alias)
    return number if number is not None or entry.missing is None else entry.missing.get(alias)


def _not_served(entry: TaskEntry, wanted: str) -> VersionNotServed:
    in_traffic = () if entry.traffic is None else entry.traffic.versions.values()
    served = {*entry.aliases.values(), *in_traffic}
    named: dict[int, list[str]] = {number: [] for number in served}
    for alias, number in sorted(entry.aliases.items()):
        named[number].append(alias)
    return VersionNotServed(entry.task, wanted, named)
