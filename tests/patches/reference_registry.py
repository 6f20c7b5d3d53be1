"""The registry's rules as a slow and simple reference, and changes for both of them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from peterrec.model.errors import PeterRecError
from peterrec.patches.identity import DEFAULT_TENANT, Digest, TaskId, TaskRef
from peterrec.patches.registry.records import (
    EventAction,
    RegistryEvent,
    RegistrySnapshot,
    TaskDetail,
    TaskOptions,
)
from peterrec.patches.registry.registry import Registry
from peterrec.patches.registry.traffic import PROD, GuardReason, Observed, Traffic
from tests.patches.registry.test_registry import SUMMARY
from tests.patches.script_limits import STATES_KEPT

NO_OPTIONS = TaskOptions()


@dataclass(frozen=True)
class Change:
    """One call of one of the registry's changes. Fields that do not concern it stay None."""

    action: EventAction
    task: TaskId
    digest: Digest | None = None
    alias: str = PROD
    options: TaskOptions = NO_OPTIONS
    traffic: Traffic | None = None
    traffic_revision: int = 0
    if_match: int | None = None

    @property
    def ref(self) -> TaskRef:
        return TaskRef(DEFAULT_TENANT, self.task)


@dataclass(frozen=True)
class State:
    """The part of a task that a rollback restores."""

    aliases: tuple[tuple[str, Digest], ...] = ()
    traffic: Traffic | None = None

    def target(self, alias: str) -> Digest | None:
        return dict(self.aliases).get(alias)

    def pointing(self, alias: str, digest: Digest) -> "State":
        return replace(self, aliases=tuple(sorted((dict(self.aliases) | {alias: digest}).items())))

    def without(self, alias: str) -> "State":
        kept = tuple(pair for pair in self.aliases if pair[0] != alias)
        return replace(self, aliases=kept)

    def names(self, digest: Digest) -> bool:
        in_traffic = self.traffic is not None and digest in self.traffic.digests()
        return in_traffic or digest in dict(self.aliases).values()


@dataclass(frozen=True)
class Task:
    """A task. Every change makes a new object, so that a copy of all tasks is cheap."""

    revision: int = 0
    options: TaskOptions = NO_OPTIONS
    numbers: tuple[tuple[Digest, int], ...] = ()
    next_number: int = 1
    state: State = State()
    traffic_revision: int = 0
    states: tuple[State, ...] = ()

    def moved_to(self, state: State) -> "Task":
        return replace(self, state=state, states=(*self.states, self.state)[-STATES_KEPT:])


class Refused(Exception):
    """A change that the rules refuse, with the code of the error."""


class NothingToDo(Exception):
    """A change that would change nothing."""


@dataclass
class ReferenceRegistry:
    """All tasks and the revision; ``apply`` is the only way to change it."""

    revision: int = 0
    tasks: dict[TaskRef, Task] = field(default_factory=dict)

    def copy(self) -> "ReferenceRegistry":
        return ReferenceRegistry(self.revision, dict(self.tasks))

    def apply(self, change: Change) -> str | None:
        """Make one change; return the code of its refusal if it is refused."""
        task = self.tasks.get(change.ref)
        found = task.revision if task else 0
        is_guard = change.action is EventAction.TRIP_GUARD
        if change.if_match not in (None, found) and not is_guard:
            return "revision_mismatch"
        creates = (EventAction.PUT_TASK, EventAction.ADD_VERSION)
        if task is None and change.action not in creates:
            return "task_not_found"
        try:
            after = RULES[change.action](task, change, self.revision + 1)
        except Refused as refused:
            return str(refused)
        except NothingToDo:
            return None
        self.revision += 1
        if after is None:
            del self.tasks[change.ref]
        else:
            self.tasks[change.ref] = replace(after, revision=self.revision)
        return None


def put_task(task: Task | None, change: Change, revision: int) -> Task:
    if task is not None and task.options == change.options:
        raise NothingToDo
    return replace(task or Task(), options=change.options)


def delete_task(task: Task | None, change: Change, revision: int) -> None:
    return None


def add_version(task: Task | None, change: Change, revision: int) -> Task:
    assert change.digest is not None
    is_new = task is None
    task = task or Task()
    if change.digest not in dict(task.numbers):
        numbers = (*task.numbers, (change.digest, task.next_number))
        added = replace(task, numbers=numbers, next_number=task.next_number + 1)
    elif task.state.target(change.alias) == change.digest:
        raise NothingToDo
    else:
        added = task
    state = task.state.pointing(change.alias, change.digest)
    if state == task.state:
        return added
    return replace(added, state=state) if is_new else added.moved_to(state)


def set_alias(task: Task | None, change: Change, revision: int) -> Task:
    assert task is not None
    if change.digest not in dict(task.numbers):
        raise Refused("version_not_found")
    assert change.digest is not None
    if task.state.target(change.alias) == change.digest:
        raise NothingToDo
    return task.moved_to(task.state.pointing(change.alias, change.digest))


def delete_alias(task: Task | None, change: Change, revision: int) -> Task:
    assert task is not None
    if task.state.target(change.alias) is None:
        raise Refused("alias_not_found")
    if change.alias == PROD and task.state.traffic is not None:
        raise Refused("alias_in_use")
    return task.moved_to(task.state.without(change.alias))


def delete_version(task: Task | None, change: Change, revision: int) -> Task:
    assert task is not None
    digest = change.digest
    if digest not in dict(task.numbers):
        raise Refused("version_not_found")
    assert digest is not None
    if task.state.names(digest):
        raise Refused("version_in_use")
    numbers = tuple(pair for pair in task.numbers if pair[0] != digest)
    states = tuple(state for state in task.states if not state.names(digest))
    return replace(task, numbers=numbers, states=states)


def put_traffic(task: Task | None, change: Change, revision: int) -> Task:
    assert task is not None
    assert change.traffic is not None
    if task.state.target(PROD) is None:
        raise Refused("no_prod_version")
    if not set(change.traffic.digests()) <= dict(task.numbers).keys():
        raise Refused("version_not_found")
    if task.state.traffic == change.traffic:
        raise NothingToDo
    moved = task.moved_to(replace(task.state, traffic=change.traffic))
    return replace(moved, traffic_revision=revision)


def clear_traffic(task: Task | None, change: Change, revision: int) -> Task:
    assert task is not None
    if task.state.traffic is None:
        raise NothingToDo
    return task.moved_to(replace(task.state, traffic=None))


def trip_guard(task: Task | None, change: Change, revision: int) -> Task:
    assert task is not None
    tripped = task.state.traffic
    if tripped is None or task.traffic_revision != change.traffic_revision:
        raise NothingToDo
    bad = set(tripped.digests())
    states = tuple(
        replace(s, traffic=None) if s.traffic and bad & set(s.traffic.digests()) else s
        for s in task.states
    )
    return replace(task, state=replace(task.state, traffic=None), states=states)


def rollback(task: Task | None, change: Change, revision: int) -> Task:
    assert task is not None
    states = list(task.states)
    while states:
        state = states.pop()
        if state != task.state and state.target(change.alias) is not None:
            return replace(task, state=state, states=tuple(states), traffic_revision=revision)
    raise Refused("nothing_to_roll_back")


RULES: dict[EventAction, Callable[[Task | None, Change, int], Task | None]] = {
    EventAction.PUT_TASK: put_task,
    EventAction.DELETE_TASK: delete_task,
    EventAction.ADD_VERSION: add_version,
    EventAction.DELETE_VERSION: delete_version,
    EventAction.SET_ALIAS: set_alias,
    EventAction.DELETE_ALIAS: delete_alias,
    EventAction.PUT_TRAFFIC: put_traffic,
    EventAction.CLEAR_TRAFFIC: clear_traffic,
    EventAction.TRIP_GUARD: trip_guard,
    EventAction.ROLLBACK: rollback,
}


async def perform(registry: Registry, change: Change) -> str | int:
    """Make a change on the real registry; return its revision, or the code of its refusal."""
    try:
        return await _revision_of(registry, change)
    except PeterRecError as error:
        return error.code


async def _revision_of(registry: Registry, change: Change) -> int:
    tenant, task, actor, seen = DEFAULT_TENANT, change.task, "ann", change.if_match
    digest, alias = change.digest or Digest(""), change.alias
    match change.action:
        case EventAction.PUT_TASK:
            return (await registry.put_task(tenant, task, change.options, actor, seen)).revision
        case EventAction.DELETE_TASK:
            return await registry.delete_task(tenant, task, actor, seen)
        case EventAction.ADD_VERSION:
            added = await registry.add_version(tenant, task, digest, SUMMARY, actor, alias, seen)
            return added.revision
        case EventAction.DELETE_VERSION:
            return await registry.delete_version(tenant, task, digest, actor, seen)
        case EventAction.SET_ALIAS:
            return (await registry.set_alias(tenant, task, alias, digest, actor, seen)).revision
        case EventAction.DELETE_ALIAS:
            return await registry.delete_alias(tenant, task, alias, actor, seen)
        case EventAction.PUT_TRAFFIC:
            assert change.traffic is not None
            put = await registry.put_traffic(tenant, task, change.traffic, actor, seen)
            return put.revision
        case EventAction.CLEAR_TRAFFIC:
            return (await registry.clear_traffic(tenant, task, actor, seen)).revision
        case EventAction.TRIP_GUARD:
            observed = Observed(Digest("0" * 64), requests=100, errors=50, p99_ms=1.0)
            tripped = await registry.trip_guard(
                tenant, task, GuardReason.ERROR_SHARE, observed, change.traffic_revision
            )
            return tripped.revision
        case EventAction.ROLLBACK:
            return (await registry.rollback(tenant, task, actor, alias, seen)).revision
    raise AssertionError(change.action)


def change_of(event: RegistryEvent, before: ReferenceRegistry) -> Change:
    """Return the change that an entry of the audit trail records."""
    assert event.task is not None
    judged = before.tasks.get(TaskRef(DEFAULT_TENANT, event.task), Task()).traffic_revision
    return Change(
        action=event.action,
        task=event.task,
        digest=event.current or event.previous,
        alias=event.alias or PROD,
        options=event.options or NO_OPTIONS,
        traffic=event.traffic,
        traffic_revision=judged,
    )


def assert_same(snapshot: RegistrySnapshot, model: ReferenceRegistry) -> None:
    """Assert that the registry has the state of the reference, as replicas read it."""
    assert snapshot.revision == model.revision
    assert snapshot.tasks.keys() == model.tasks.keys()
    for ref, record in snapshot.tasks.items():
        task = model.tasks[ref]
        numbers = dict(task.numbers)
        assert record.revision == task.revision
        versions = record.versions
        found = {alias: (versions[number], number) for alias, number in record.aliases.items()}
        assert found == {alias: (d, numbers[d]) for alias, d in task.state.aliases}
        assert (record.traffic is None) == (task.state.traffic is None)
        if record.traffic is not None and task.state.traffic is not None:
            assert record.traffic.traffic == task.state.traffic
            assert record.traffic.revision == task.traffic_revision
            digests = task.state.traffic.digests()
            assert record.traffic.versions == {digest: numbers[digest] for digest in digests}


def assert_same_versions(detail: TaskDetail, model: ReferenceRegistry) -> None:
    """A task's options, its versions and their numbers are as the reference says."""
    assert detail.record.options == model.tasks[detail.record.ref].options
    found = {version.digest: version.version for version in detail.versions}
    assert found == dict(model.tasks[detail.record.ref].numbers)
