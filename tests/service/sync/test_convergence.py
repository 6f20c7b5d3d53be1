"""After changes, losses, cut connections and restarts, replicas soon serve what the registry says.

``CONVERGENCE_EXAMPLES=100 pytest tests/service/sync/test_convergence.py`` searches longer.
"""

import asyncio
import os
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, TypeVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.patches.identity import Blob, Digest, TaskId, digest_of
from peterrec.patches.registry.records import EventAction
from peterrec.patches.registry.registry import Registry
from peterrec.patches.registry.traffic import Canary, Traffic
from peterrec.service.device.slots import LocalBundle, SlotStore
from tests.patches.breakable_proxy import BreakableProxy
from tests.patches.redis_servers import HOST, RedisServer, connect, running
from tests.patches.reference_registry import Change, ReferenceRegistry, perform
from tests.patches.registry.test_registry_properties import accept_for, dump, restore
from tests.service.random_bundles import Workshop
from tests.service.replicas import DeviceThread, Replica, Served
from tests.waiting import soon

EXAMPLES = int(os.environ.get("CONVERGENCE_EXAMPLES", "5"))
WITHIN_S = float(os.environ.get("CONVERGENCE_WITHIN_S", "10"))
"""With a machine of one's own, 2 s hold; a shared one may be held up for longer than that."""

TASKS = [TaskId("one"), TaskId("two"), TaskId("three")]
SEEDS = range(6)
ALIASES = ["prod", "prod", "candidate"]
CHANGES = [
    *[EventAction.ADD_VERSION] * 4,
    *[EventAction.ROLLBACK] * 2,
    EventAction.SET_ALIAS,
    EventAction.DELETE_ALIAS,
    EventAction.DELETE_VERSION,
    EventAction.DELETE_TASK,
    EventAction.PUT_TRAFFIC,
    EventAction.CLEAR_TRAFFIC,
]
REPLICAS = 2

Result = TypeVar("Result")


class Ground:
    """What all examples share: one Redis, a network for each replica, and bundles."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        self.workshop = Workshop(folder)
        self.redis = redis
        self.networks = [BreakableProxy(redis.port) for _ in range(REPLICAS)]
        self.threads = [DeviceThread() for _ in range(REPLICAS)]
        self.bundles = [self.workshop.bundle("classification", seed) for seed in SEEDS]
        self.digests = [digest_of(data) for data in self.bundles]
        self.slowest_s = 0.0
        self._warm_up()

    def _warm_up(self) -> None:
        """Kernels are compiled once a process, which takes seconds."""
        store = SlotStore(self.workshop.loaded.backbone, head_limit_bytes=1 << 20)
        identity, limits = self.workshop.identity, BundleLimits()
        store.load_many(
            [LocalBundle(verify_bundle(b, backbone=identity, limits=limits)) for b in self.bundles]
        )


@pytest.fixture(scope="module", autouse=True)
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    redis = RedisServer(
        tmp_path_factory.mktemp("redis"), "--appendonly", "yes", "--appendfsync", "always"
    )
    with running(redis):
        ground = Ground(tmp_path_factory.mktemp("backbone"), redis)
        ConvergenceMachine.ground = ground
        yield ground
        for network in ground.networks:
            network.close()
    print(f"slowest convergence: {ground.slowest_s:.2f} s")


class ConvergenceMachine(RuleBasedStateMachine):
    """Replicas that follow one registry through networks that fail, and a plain model of it."""

    ground: ClassVar[Ground]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = TemporaryDirectory()
        self.prefix = f"test-{uuid4().hex}"
        self.redis = connect(self.ground.redis.url)
        self.registry = Registry(self.redis, self.prefix)
        self.model = ReferenceRegistry()
        self.replicas = [
            Replica(
                self.ground.threads[number],
                self.ground.workshop,
                Path(self.folder.name) / str(number),
                f"redis://{HOST}:{network.port}",
                self.prefix,
            )
            for number, network in enumerate(self.ground.networks)
        ]

    def run(self, work: Coroutine[None, None, Result]) -> Result:
        return self.loop.run_until_complete(work)

    @initialize()
    def begin(self) -> None:
        for data in self.ground.bundles:
            self.run(self.registry.blobs.put(Blob(data)))
        for number, task in enumerate(TASKS[:2]):
            self.change(EventAction.ADD_VERSION, task, number, "prod")
        self.back_up()
        for network, replica in zip(self.ground.networks, self.replicas, strict=True):
            network.mend()
            self.run(replica.open())

    @rule(
        action=st.sampled_from(CHANGES),
        task=st.sampled_from(TASKS),
        bundle=st.sampled_from(SEEDS),
        alias=st.sampled_from(ALIASES),
    )
    def change(self, action: EventAction, task: TaskId, bundle: int, alias: str) -> None:
        digests = self.ground.digests
        canary = Canary(digests[bundle], 10)
        traffic = Traffic(90, (canary,), shadow=(digests[(bundle + 1) % len(digests)],))
        change = Change(action, task, digests[bundle], alias, traffic=traffic)
        before = self.model.revision
        refusal = self.model.apply(change)
        result = self.run(perform(self.registry, change))
        assert refusal is None or result == refusal
        assert self.model.revision == before or result == self.model.revision

    @rule(number=st.integers(0, REPLICAS - 1))
    def the_network_is_cut(self, number: int) -> None:
        self.ground.networks[number].cut()

    @rule(number=st.integers(0, REPLICAS - 1))
    def the_network_falls_silent(self, number: int) -> None:
        self.ground.networks[number].silence()

    @rule(number=st.integers(0, REPLICAS - 1))
    def the_network_is_mended(self, number: int) -> None:
        self.ground.networks[number].mend()
        self.converged(number)

    @rule(number=st.integers(0, REPLICAS - 1))
    def a_replica_restarts(self, number: int) -> None:
        self.replicas[number].stop()
        self.replicas[number].start()

    @rule()
    def notifications_are_lost(self) -> None:
        self.run(self._drop_notifications())

    @rule(number=st.integers(0, REPLICAS - 1))
    def notifications_come_many_times(self, number: int) -> None:
        for _ in range(3):
            self.replicas[number].follower.look_now()

    @rule()
    def redis_restarts(self) -> None:
        self.ground.redis.kill()
        self.ground.redis.start()

    @rule()
    def back_up(self) -> None:
        self.backup = self.run(dump(self.redis, self.prefix)), self.model.copy()

    @rule()
    def redis_comes_back_as_it_was_at_the_backup(self) -> None:
        """An operator accepts it at once, as what was changed since is lost."""
        dumped, model = self.backup
        lost = self.run(self.registry.feed.position())
        self.run(self._become(dumped))
        self.model = model.copy()
        known = [position for replica in self.replicas for position in replica.known()]
        self.model.revision = self.run(accept_for([lost, *known], self.registry))

    @rule()
    def everybody_looks(self) -> None:
        for number, network in enumerate(self.ground.networks):
            if network.is_open:
                self.converged(number)

    def teardown(self) -> None:
        try:
            for number, network in enumerate(self.ground.networks):
                network.mend()
                self.converged(number)
        finally:
            for replica in self.replicas:
                self.run(replica.close())
            self.run(restore(self.redis, self.prefix, {}))
            self.run(self.registry.close())
            self.loop.close()
            self.folder.cleanup()

    def converged(self, number: int) -> None:
        """The replica serves exactly what the model says, at the latest in two seconds."""
        replica, wanted = self.replicas[number], expected(self.model)
        started = time.monotonic()
        try:
            self.run(soon(lambda: replica.served() == wanted, WITHIN_S))
        except AssertionError:
            assert replica.served() == wanted
        took_s = time.monotonic() - started
        self.ground.slowest_s = max(self.ground.slowest_s, took_s)

    async def _become(self, dumped: dict[bytes, bytes | None]) -> None:
        """In one step, as a Redis that starts from an older file: nobody sees half of it."""
        present = [key async for key in self.redis.scan_iter(f"{{{self.prefix}}}:*", 1000)]
        async with self.redis.pipeline(transaction=True) as pipeline:
            for key in present:
                pipeline.delete(key)
            for key, value in dumped.items():
                assert value is not None
                pipeline.restore(key, 0, value)
            await pipeline.execute()

    async def _drop_notifications(self) -> None:
        await self.redis.xtrim(f"{{{self.prefix}}}:changes", maxlen=0, approximate=False)


def expected(model: ReferenceRegistry) -> Served:
    """What a replica that has caught up serves."""
    served: Served = {}
    for ref, task in model.tasks.items():
        traffic = task.state.traffic
        split: frozenset[Digest] = frozenset(traffic.digests()) if traffic else frozenset()
        served[ref.task] = (dict(task.state.aliases), frozenset(map(str, split)))
    return served


TestReplicas = pytest.mark.slow(ConvergenceMachine.TestCase)
TestReplicas.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes here
    suppress_health_check=list(HealthCheck),
)
