"""A discrete-event model of clients, proxies and replicas, from measured processor times.

Every process is an event loop: a round takes what has arrived meanwhile, needs a core for a fixed
time and a time for each message, and passes each message on when it is done; the device process
takes at most a batch, and passes it on as a whole. A request passes generator, proxy, worker,
device, worker, proxy and generator.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from random import Random

import numpy as np
import simpy

MAX_BATCH_ROWS = 256
"""PETERREC_MAX_BATCH_ROWS."""

SLICE_S = 0.01
"""Seconds of loading bundles after which the device process looks for requests again."""

Steps = Generator[simpy.events.Event, None, None]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of processor time of a round, and of each message in it."""

    round_s: float
    message_s: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What each process needs. All but the device see a request twice: going, and coming back.

    A round's time is scattered by a log-normal factor with a median of 1 and ``scatter`` as the
    standard deviation of its logarithm. A change of the registry takes ``change_s`` of the device
    process of every replica, to load and prove the bundle.
    """

    generator: Cost
    proxy: Cost
    worker: Cost
    device: Cost
    scatter: float = 0.0
    change_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Site:
    """``cores`` is the number of cores that all processes share; with 0, each has its own.

    A proxy asks the replicas in turn; with ``choices`` of 2, the less busy of two.
    """

    replicas: int
    cores: int = 0
    proxies: int = 1
    generators: int = 1
    choices: int = 1


@dataclass(frozen=True, slots=True)
class Load:
    """Requests: of clients that ask again a pause after each answer, and at random times.

    Clients come ``clients`` many. At random times come ``per_s`` requests a second, ``burst`` times
    as many from ``burst_at_s`` on for ``burst_s`` seconds. ``lost`` replicas end at that time, and
    what they had is asked again elsewhere after ``notice_s`` seconds. Meanwhile the registry
    changes ``changes_per_s`` times a second.
    """

    seconds: float
    clients: int = 0
    pause_s: float = 0.0
    per_s: float = 0.0
    burst: float = 1.0
    burst_at_s: float = float("inf")
    burst_s: float = 0.0
    lost: int = 0
    notice_s: float = 0.05
    changes_per_s: float = 0.0
    warm_up_s: float = 0.3


@dataclass(frozen=True, slots=True)
class Forecast:
    """Answers per second, and percentiles of the latency in milliseconds."""

    rate: float
    p50_ms: float
    p99_ms: float
    worst_ms: float


class Loop:
    """A process: takes what has arrived, computes on a core, and passes each request on."""

    def __init__(self, world: "World", cost: Cost, *, is_batched: bool = False) -> None:
        self._world, self._cost, self._is_batched = world, cost, is_batched
        self._inbox: list[Request] = []
        self._wake = world.env.event()
        self._other_s = 0.0
        self.waiting = 0
        self.is_alive = True
        world.env.process(self._run())

    def put(self, request: "Request") -> None:
        """Leave a request for the next round."""
        self.waiting += 1
        self._inbox.append(request)
        self._awake()

    def add(self, seconds: float) -> None:
        """Leave other work, which is done in slices between rounds."""
        self._other_s += seconds
        self._awake()

    def _awake(self) -> None:
        if not self._wake.triggered:
            self._wake.succeed()

    def _run(self) -> Steps:
        env, cores = self._world.env, self._world.cores
        while True:
            if not self._inbox and not self._other_s:
                self._wake = env.event()
                yield self._wake
            core = cores.request() if cores else None
            if core is not None:
                yield core
            slice_s = min(self._other_s, SLICE_S)
            if slice_s:
                yield env.timeout(slice_s)
                self._other_s -= slice_s
            most = MAX_BATCH_ROWS if self._is_batched else len(self._inbox)
            batch, self._inbox = self._inbox[:most], self._inbox[most:]
            factor = self._world.factor()
            yield env.timeout(self._cost.round_s * factor if batch else 0.0)
            if self._is_batched:
                yield env.timeout(self._cost.message_s * len(batch) * factor)
            for request in batch:
                if not self._is_batched:
                    yield env.timeout(self._cost.message_s * factor)
                self.waiting -= 1
                request.leave(self)
            if core is not None and cores is not None:
                cores.release(core)


@dataclass(slots=True)
class Replica:
    """A worker and the device process of one replica."""

    worker: Loop
    device: Loop

    @property
    def waiting(self) -> int:
        """Requests that wait in its processes."""
        return self.worker.waiting + self.device.waiting


@dataclass(slots=True)
class Request:
    """A request on its way. ``route`` has the loops that are before it, the next one last."""

    world: "World"
    generator: Loop
    then: Callable[[], object]
    asked_at: float
    route: list[Loop] = field(default_factory=list)
    has_replica: bool = False

    def leave(self, loop: Loop) -> None:
        """Go on after a round; to the proxy again if the process has ended meanwhile."""
        world = self.world
        if not loop.is_alive:
            world.env.process(self._ask_again())
        elif loop in world.proxies and not self.has_replica:
            self.has_replica, replica = True, world.choose()
            self.route = [self.generator, loop, replica.worker, replica.device]
            replica.worker.put(self)
        elif self.route:
            self.route.pop().put(self)
        elif loop is self.generator and not self.has_replica:
            world.random.choice(world.proxies).put(self)
        else:
            world.note(self.asked_at)
            self.then()

    def _ask_again(self) -> Steps:
        yield self.world.env.timeout(self.world.load.notice_s)
        self.route, self.has_replica = [], False
        self.world.random.choice(self.world.proxies).put(self)


class World:
    """What is simulated, and the latencies so far."""

    def __init__(self, costs: Costs, site: Site, load: Load, seed: int) -> None:
        self.env = simpy.Environment()
        self.random = Random(seed)
        self.load, self._site, self._change_s = load, site, costs.change_s
        self.cores = simpy.Resource(self.env, site.cores) if site.cores else None
        self._generators = [Loop(self, costs.generator) for _ in range(site.generators)]
        self.proxies = [Loop(self, costs.proxy) for _ in range(site.proxies)]
        self._replicas = [
            Replica(Loop(self, costs.worker), Loop(self, costs.device, is_batched=True))
            for _ in range(site.replicas)
        ]
        self._scatter = costs.scatter
        self._turn = 0
        self._latencies_s: list[float] = []

    def run(self) -> Forecast:
        """Simulate the load to its end."""
        for _ in range(self.load.clients):
            self.env.process(self._client())
        if self.load.per_s:
            self.env.process(self._stream())
        self.env.process(self._lose())
        if self.load.changes_per_s:
            self.env.process(self._change())
        self.env.run(self.load.warm_up_s + self.load.seconds)
        found = np.array(self._latencies_s) * 1000
        p50, p99, worst = np.percentile(found, [50, 99, 100]) if len(found) else (0, 0, 0)
        return Forecast(len(found) / self.load.seconds, float(p50), float(p99), float(worst))

    def choose(self) -> Replica:
        """The next replica in turn, or the least busy of the next few."""
        self._turn += 1
        count = len(self._replicas)
        if self._site.choices == 1:
            return self._replicas[self._turn % count]
        some = (self.random.randrange(count) for _ in range(self._site.choices))
        return min((self._replicas[at] for at in some), key=lambda replica: replica.waiting)

    def factor(self) -> float:
        """What the time of a round is multiplied by."""
        return self.random.lognormvariate(0.0, self._scatter) if self._scatter else 1.0

    def note(self, asked_at: float) -> None:
        """Count an answer, unless it was asked for during the warm-up."""
        if asked_at >= self.load.warm_up_s:
            self._latencies_s.append(self.env.now - asked_at)

    def _ask(self, then: Callable[[], object]) -> None:
        generator = self.random.choice(self._generators)
        generator.put(Request(self, generator, then, self.env.now))

    def _client(self) -> Steps:
        yield self.env.timeout(self.random.random() * max(self.load.pause_s, 1e-3))
        while True:
            answered = self.env.event()
            self._ask(answered.succeed)
            yield answered
            if self.load.pause_s:
                yield self.env.timeout(self.load.pause_s)

    def _stream(self) -> Steps:
        load = self.load
        while True:
            since_s = self.env.now - load.burst_at_s
            factor = load.burst if 0 <= since_s < load.burst_s else 1.0
            yield self.env.timeout(self.random.expovariate(load.per_s * factor))
            self._ask(lambda: None)

    def _change(self) -> Steps:
        while True:
            yield self.env.timeout(self.random.expovariate(self.load.changes_per_s))
            for replica in self._replicas:
                replica.device.add(self._change_s)

    def _lose(self) -> Steps:
        if not self.load.lost:
            return
        yield self.env.timeout(self.load.burst_at_s)
        for replica in self._replicas[: self.load.lost]:
            replica.worker.is_alive = replica.device.is_alive = False
        yield self.env.timeout(self.load.notice_s)  # until then, the proxies still ask them
        del self._replicas[: self.load.lost]


def forecast(costs: Costs, site: Site, load: Load, seed: int = 1) -> Forecast:
    """Simulate a load on a site."""
    return World(costs, site, load, seed).run()
