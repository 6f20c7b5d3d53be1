"""Replicas over one Redis, and a Prometheus that watches them, in which faults are really made."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from peterrec.model.spec import BackboneSpec
from tests.docker.hurried import QUEUE_ROWS, hurried_rules
from tests.docker.prometheus import Prometheus, prometheus_over
from tests.e2e.conftest import first_key
from tests.e2e.running import RunningServer, Start, free_port, kill_everything, running_server
from tests.patches.redis_servers import RedisServer, running
from tests.service.random_bundles import ITEMS, Workshop
from tests.waiting import eventually

PREFIX = "peterrec"
PEER_CONNECTIONS = 40
START_S = 300.0
"""Seconds that a start may take: the first one on a machine compiles kernels."""

SPEC = BackboneSpec(item_count=200, channels=64, dilations=(1, 2, 4, 8) * 2, max_len=100)
"""A row of the longest history takes half a millisecond or so: a few clients are a flood."""

SETTINGS: Mapping[str, object] = {
    "workers": 2,
    "auth": "on",
    "hang_limit_s": 3,
    "max_queue_rows": QUEUE_ROWS,
    "peer_connections": PEER_CONNECTIONS,
    "drain_delay_s": 0,
    "log_level": "info",
}
"""Smaller limits than the defaults, so that a fault takes seconds."""

OTHER_USER, OTHER_PASSWORD = "replica-two", "its-password"
"""As whom the second replica speaks to Redis."""


@dataclass
class Replica:
    """A server that can be ended and started again, on the same ports."""

    workshop: Workshop
    folder: Path
    redis_url: str
    key: str
    ports: tuple[int, int] = field(default_factory=lambda: (free_port(), free_port()))
    life: ExitStack = field(default_factory=ExitStack)

    def start(self, **settings: object) -> None:
        """Start it, with these settings instead of the stage's."""
        port, metrics_port = self.ports
        given = {**SETTINGS, "redis_url": self.redis_url, **settings}
        self.server: RunningServer = self.life.enter_context(
            running_server(
                self.workshop.folder,
                self.folder,
                start=Start(within_s=START_S),
                port=port,
                metrics_port=metrics_port,
                **given,
            )
        )
        self.server.key = self.key

    def stop(self) -> None:
        """End it as an operator does."""
        self.life.close()

    def kill(self) -> None:
        """End it as a power cut does."""
        kill_everything(self.server)
        self.stop()


@dataclass
class Stage:
    """All that a fault and a page act on; ``variables`` are what a reader of the page knows."""

    folder: Path
    workshop: Workshop
    redis: RedisServer
    one: Replica
    two: Replica
    prometheus: Prometheus
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def server(self) -> RunningServer:
        return self.one.server

    def client(self) -> httpx.Client:
        return self.server.client()

    def file(self, name: str, content: bytes) -> Path:
        """Put a file where the commands of a page run."""
        path = self.folder / name
        path.write_bytes(content)
        return path

    @contextmanager
    def second(self, **settings: object) -> Iterator[Replica]:
        """Have a second replica, which Prometheus watches too and the reader looks at."""
        with self.redis.client() as redis:
            allowed = ["on", f">{OTHER_PASSWORD}", "~*", "&*", "+@all"]
            redis.execute_command("ACL", "SETUSER", OTHER_USER, *allowed)
        self.two.start(**settings)
        self.prometheus.scrape([self.one.server, self.two.server])
        self.look_at(self.two)
        try:
            yield self.two
        finally:
            self.look_at(self.one)
            self.prometheus.scrape([self.one.server])
            self.two.stop()

    def look_at(self, replica: Replica) -> None:
        """Let the reader's variables be those of a replica: the one that the alert names."""
        server = replica.server
        self.variables |= {
            "PETERREC_URL": server.url,
            "PETERREC_METRICS_URL": f"http://127.0.0.1:{server.metrics_port}/metrics",
            "PETERREC_DATA_DIR": str(server.folder / "data"),
            "LOG": str(server.folder / "err.txt"),
        }


@contextmanager
def stage_in(folder: Path) -> Iterator[Stage]:
    """Start Redis, one replica and Prometheus with hurried rules; end them afterwards."""
    workshop = Workshop(folder / "backbone", SPEC, ITEMS)
    redis = RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always")
    with ExitStack() as stack:
        stack.enter_context(running(redis))
        key = asyncio.run(first_key(redis.url, PREFIX))
        as_other = redis.url.replace("//", f"//{OTHER_USER}:{OTHER_PASSWORD}@")
        one, two = (
            Replica(workshop, folder / name, url, key)
            for name, url in (("one", redis.url), ("two", as_other))
        )
        one.start()
        stack.callback(lambda: one.stop())
        rules = hurried_rules(folder / "rules")
        prometheus = stack.enter_context(
            prometheus_over([one.server], folder / "prometheus", rules)
        )
        ground = folder / "ground"
        ground.mkdir()
        stage = Stage(ground, workshop, redis, one, two, prometheus)
        stage.variables |= {
            "PETERREC_API_KEY": key,
            "PETERREC_REDIS_URL": redis.url,
            "PROMETHEUS_URL": prometheus.url,
        }
        stage.look_at(one)
        eventually(lambda: bool(prometheus.samples("peterrec_build_info")), 30)
        yield stage


@contextmanager
def calling(*asks: Callable[[httpx.Client], object], server: RunningServer) -> Iterator[None]:
    """Let callers ask, each in a thread and again and again, until the block ends."""
    is_over = threading.Event()

    def ask(one: Callable[[httpx.Client], object]) -> None:
        with server.client() as client:
            while not is_over.wait(0.02):
                with suppress(httpx.HTTPError):
                    one(client)

    threads = [threading.Thread(target=ask, args=(one,)) for one in asks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def asks_for(task: str, users: Sequence[Sequence[str]]) -> Callable[[httpx.Client], object]:
    """A caller that asks about these histories in turn."""
    turn = iter(range(10**9))

    def ask(client: httpx.Client) -> object:
        user = next(turn) % len(users)
        instance = {"history": list(users[user]), "user_id": user}
        return client.post(f"/tasks/{task}/predict", json={"instances": [instance]})

    return ask
