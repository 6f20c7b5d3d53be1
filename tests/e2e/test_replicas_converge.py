"""Real servers that follow one Redis: whatever dies, each serves what the registry says, soon.

Another sequence: ``REPLICAS_SEED=2 pytest tests/e2e/test_replicas_converge.py``.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from peterrec.patches.identity import Digest, TaskId, digest_of
from peterrec.patches.registry.records import EventAction
from tests.e2e.replicas import Replica, expected, possible
from tests.patches.redis_servers import RedisServer, running
from tests.patches.reference_registry import Change, ReferenceRegistry
from tests.service.random_bundles import Workshop

SEED = int(os.environ.get("REPLICAS_SEED", "1"))
WITHIN_S = float(os.environ.get("CONVERGENCE_WITHIN_S", "10"))
"""With a machine of one's own, 2 s hold; a shared one may be held up for longer than that."""

REPLICAS = 2
STEADY = TaskId("steady")
"""Always has a version, so that a replica that answers can be told from one that does not."""

TASKS = [TaskId("one"), TaskId("two"), TaskId("three")]
SEEDS = range(5)
CHANGES = [
    *[EventAction.ADD_VERSION] * 4,
    *[EventAction.SET_ALIAS] * 2,
    *[EventAction.ROLLBACK] * 2,
    EventAction.DELETE_ALIAS,
    EventAction.DELETE_TASK,
]


class Fleet:
    """Replicas, their Redis, and a plain model of what was registered."""

    def __init__(self, replicas: list[Replica], redis: RedisServer, bundles: list[bytes]) -> None:
        self.replicas = replicas
        self.redis = redis
        self.bundles = {digest_of(data): data for data in bundles}
        self.digests: list[Digest] = list(self.bundles)
        self.model = ReferenceRegistry()
        self.choice = random.Random(SEED)
        self.slowest_s = 0.0
        self.history: list[str] = []

    def change(self, action: EventAction, through: list[Replica]) -> None:
        """Make some change of this kind, or a registration if none is possible."""
        found = possible(self.model, action, TASKS, self.digests)
        if not found:
            found = possible(self.model, EventAction.ADD_VERSION, TASKS, self.digests)
        self.make(self.choice.choice(found), through)

    def make(self, change: Change, through: list[Replica]) -> None:
        replica = self.choice.choice(through)
        assert self.model.apply(change) is None
        self._note(f"{change.action} {change.task} {change.alias} by {self._name(replica)}")
        assert replica.make(change, self.bundles) == self.model.revision
        self.converge(through)

    def kill_replica(self, action: EventAction) -> None:
        """All its processes at once; what changes meanwhile it learns as it starts."""
        replica, others = self._one_and_others()
        self._note(f"kill {self._name(replica)}")
        replica.kill()
        self.change(action, others)
        replica.start()
        self.converge(self.replicas)

    def kill_device(self, action: EventAction) -> None:
        """The device process alone; what changes meanwhile the next one learns."""
        replica, others = self._one_and_others()
        self._note(f"kill the device of {self._name(replica)}")
        replica.kill_device()
        self.change(action, others)
        replica.wait_until_it_answers(STEADY)
        self.converge(self.replicas)

    def restart_redis(self, action: EventAction) -> None:
        self._note("restart Redis")
        self.redis.kill()
        self.redis.start()
        self.converge(self.replicas)
        self.change(action, self.replicas)

    def converge(self, replicas: list[Replica]) -> None:
        """Each one says exactly what the model says, at the latest in two seconds."""
        wanted, started = expected(self.model, [STEADY, *TASKS], self.digests), time.monotonic()
        for replica in replicas:
            while (found := replica.answers(wanted)) != wanted:
                if time.monotonic() - started > WITHIN_S:
                    assert found == wanted, f"{self._name(replica)} after {'; '.join(self.history)}"
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)

    def _one_and_others(self) -> tuple[Replica, list[Replica]]:
        one = self.choice.choice(self.replicas)
        return one, [replica for replica in self.replicas if replica is not one]

    def _name(self, replica: Replica) -> str:
        return f"replica {self.replicas.index(replica)}"

    def _note(self, what: str) -> None:
        self.history.append(what)


@pytest.fixture
def fleet(workshop: Workshop, tmp_path: Path) -> Iterator[Fleet]:
    """Replicas that are ready, and a task that stays."""
    redis = RedisServer(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always")
    folders = [tmp_path / f"replica-{number}" for number in range(REPLICAS)]
    with running(redis), ThreadPoolExecutor(REPLICAS) as threads, ExitStack() as undo:
        replicas = [Replica(workshop.folder, folder, redis.url) for folder in folders]
        undo.callback(lambda: list(threads.map(Replica.stop, replicas)))
        list(threads.map(Replica.start, replicas))
        fleet = Fleet(replicas, redis, [workshop.bundle("classification", s) for s in SEEDS])
        fleet.make(Change(EventAction.ADD_VERSION, STEADY, fleet.digests[0]), replicas)
        yield fleet
    print(f"slowest convergence: {fleet.slowest_s:.2f} s")


def operations(fleet: Fleet) -> list[tuple[Callable[[EventAction], None], EventAction]]:
    """Every change once, some of them while something is dead, in an order of the seed's."""

    def plainly(action: EventAction) -> None:
        fleet.change(action, fleet.replicas)

    deaths = [
        fleet.kill_replica,
        *[fleet.kill_device] * 2,
        *[fleet.restart_redis] * 2,
    ]
    steps = [*deaths, *[plainly] * (len(CHANGES) - len(deaths))]
    fleet.choice.shuffle(steps)
    return list(zip(steps, fleet.choice.sample(CHANGES, len(CHANGES)), strict=True))


@pytest.mark.slow
def test_after_every_change_and_every_death_each_replica_serves_exactly_what_is_registered(
    fleet: Fleet,
) -> None:
    for operation, action in operations(fleet):
        operation(action)
    assert len(fleet.history) > len(CHANGES)
