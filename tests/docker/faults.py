"""Faults that are really made on a stage, one for each alert, and those who must act in the end.

A fault is a context: within it, the fault is there. It yields what people do whom the page names
and whom no command replaces: the owner of a client stops it, somebody starts a machine.
"""

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from random import Random

import httpx
import psutil

from tests.docker.scene import with_prior
from tests.docker.stage import OTHER_USER, SPEC, Stage, asks_for, calling
from tests.e2e.conftest import push
from tests.e2e.neighbours import as_caller, make_tenant, push_films
from tests.e2e.rollouts import (
    UNPROBED_OUTPUTS,
    broken_bundle,
    opposite_bundle,
    put_traffic,
    with_two_versions,
)
from tests.service.random_bundles import ITEMS
from tests.waiting import eventually

Owner = Callable[[], object]
"""What somebody does whom the page names."""


@dataclass(frozen=True)
class Fault:
    """One fault: the page it is on, the alerts that must fire, and how it is made."""

    name: str
    page: str
    alerts: tuple[str, ...]
    told: str
    make: Callable[[Stage], AbstractContextManager[Owner]]
    is_quick: bool = False


FAULTS: dict[str, Fault] = {}


def fault(
    page: str, *alerts: str, told: str, is_quick: bool = False
) -> Callable[[Callable[[Stage], Iterator[Owner]]], Fault]:
    """Register a fault under the name of its function, with ``-`` for ``_``."""

    def register(make: Callable[[Stage], Iterator[Owner]]) -> Fault:
        name = make.__name__.replace("_", "-")
        found = Fault(name, page, alerts, told, contextmanager(make), is_quick)
        FAULTS[name] = found
        return found

    return register


def nobody() -> None:
    """The page's commands were enough."""


USERS = [[Random(seed).choice(ITEMS) for _ in range(1 + seed % 15)] for seed in range(300)]
LONG = [Random(7).choice(ITEMS) for _ in range(SPEC.max_len)]


@fault(
    "requests-fail",
    *("PeterRecErrorBudgetBurnsFast", "PeterRecErrorBudgetBurns"),
    *("PeterRecErrorBudgetBurnsSlowly", "PeterRecTaskFails"),
    told="a version was pushed whose answers are not finite",
    is_quick=True,
)
def bad_version(stage: Stage) -> Iterator[Owner]:
    task = stage.variables["TASK"] = "region"
    sound = stage.workshop.bundle("classification", seed=8, outputs=UNPROBED_OUTPUTS)
    with stage.client() as api:
        push(api, task, sound)
        push(api, task, broken_bundle(stage.workshop, 9))
    with calling(asks_for(task, USERS), server=stage.server):
        yield nobody


@fault("bundle-refused", "PeterRecBundleRejected", told="a file was pushed that is none")
def no_bundle(stage: Stage) -> Iterator[Owner]:
    stage.variables |= {"TASK": "pickled", "FILE": "model.pkl"}
    stage.file("model.pkl", b"\x80\x04 a pickle")
    with stage.client() as api:
        refused = api.post("/tasks/pickled/versions", content=b"\x80\x04 a pickle")
    assert refused.is_client_error, refused.text
    yield nobody


@fault(
    "guard-tripped",
    "PeterRecGuardTripped",
    told="a canary whose answers are not finite",
    is_quick=True,
)
def bad_canary(stage: Stage) -> Iterator[Owner]:
    task = stage.variables["TASK"] = "mood"
    bundles = [
        stage.workshop.bundle("classification", seed, outputs=UNPROBED_OUTPUTS) for seed in (21, 22)
    ]
    stage.variables["FILE"] = stage.file("mended.bundle", bundles[1]).name
    with stage.client() as api:
        _, broken = with_two_versions(api, task, bundles[0], broken_bundle(stage.workshop, 23))
        canary, guard = {"version": broken, "weight": 50}, {"max_error_share": 0.1}
        put_traffic(api, task, prod_weight=50, canary=[canary], guard=guard | {"min_requests": 10})
    with calling(asks_for(task, USERS), server=stage.server):
        yield nobody


@fault(
    "registry-lost",
    "PeterRecRegistryLost",
    told="`FLUSHALL` in Redis",
    is_quick=True,
)
def emptied_redis(stage: Stage) -> Iterator[Owner]:
    with stage.client() as api:
        push(api, "kept", stage.workshop.bundle("value", seed=31))
        revision = api.get("/readyz").json()["registry_revision"]
    eventually(lambda: f"revision={revision}" in stage.server.log, 20)
    time.sleep(2)  # a copy is behind by a second or so
    with stage.redis.client() as redis:
        redis.flushall()
    with calling(asks_for("kept", USERS), server=stage.server):
        yield nobody


@fault("registry-stale", "PeterRecRegistryStale", told="Redis was killed", is_quick=True)
def redis_away(stage: Stage) -> Iterator[Owner]:
    stage.redis.kill()
    try:
        yield stage.redis.start
    finally:
        if stage.redis.process is None:
            stage.redis.start()


@fault(
    "process-dies",
    *("PeterRecChildRestarted", "PeterRecChildKeepsDying"),
    told="`kill -9` of workers and of the device process, again and again",
)
def killed_processes(stage: Stage) -> Iterator[Owner]:
    for name in ("device", "worker", "worker", "worker", "worker"):
        before = stage.server.restarts(name, "died")
        _send(stage, name, signal.SIGKILL)
        eventually(partial(_has_died_since, stage, name, before), 30)
    yield nobody


def _send(stage: Stage, name: str, number: signal.Signals) -> None:
    """Send a signal to a child process of the server, which may just be starting again."""

    def is_sent() -> bool:
        with suppress(psutil.Error, AssertionError):
            stage.server.child(name).send_signal(number)
            return True
        return False

    eventually(is_sent, 30)


def _has_died_since(stage: Stage, name: str, before: float) -> bool:
    return stage.server.restarts(name, "died") > before


@fault(
    "process-hangs",
    "PeterRecChildHung",
    told="`kill -STOP` of the device process",
    is_quick=True,
)
def stopped_device(stage: Stage) -> Iterator[Owner]:
    _send(stage, "device", signal.SIGSTOP)
    yield nobody


@fault("replica-down", "PeterRecDown", told="`kill -9` of the whole server")
def killed_server(stage: Stage) -> Iterator[Owner]:
    stage.one.kill()
    try:
        yield stage.one.start
    finally:
        if stage.server.process.poll() is not None:
            stage.one.start()


@fault("replica-down", "PeterRecAbsent", told="the discovery found nobody", is_quick=True)
def nobody_found(stage: Stage) -> Iterator[Owner]:
    stage.prometheus.scrape([])
    yield partial(stage.prometheus.scrape, [stage.server])
    stage.prometheus.scrape([stage.server])


@fault(
    "queue-grows",
    *("PeterRecQueueNearLimit", "PeterRecRefusesLoad", "PeterRecDeviceSaturated"),
    told="a tenant flooded with calls of 64 long histories",
)
def flood(stage: Stage) -> Iterator[Owner]:
    with _flooding(stage):
        yield nobody


@fault(
    "predictions-are-slow",
    "PeterRecSlow",
    told="a tenant flooded with calls of 64 long histories",
)
def slow_by_load(stage: Stage) -> Iterator[Owner]:
    with _flooding(stage):
        yield nobody


@contextmanager
def _flooding(stage: Stage) -> Iterator[None]:
    """Let one tenant ask for more than the device can compute, and another one as usual."""
    tenant = "flooder"
    stage.variables |= {"TENANT": tenant, "TASK": "usual"}
    rows = {"instances": [{"history": LONG}] * 64}
    with stage.client() as api:
        api.delete(f"/tenants/{tenant}")
        made = make_tenant(api, tenant)
        push_films(stage.server, made, stage.workshop.bundle("value", seed=7))
        push(api, "usual", stage.workshop.bundle("value", seed=41))

    def flood(client: httpx.Client) -> object:
        client.headers["Authorization"] = f"Bearer {made.secret('predict')}"
        answer = client.post("/tasks/films/predict", json=rows)
        if answer.status_code == 429:
            time.sleep(0.02)
        return answer

    with calling(*[flood] * 16, asks_for("usual", USERS), server=stage.server):
        yield
    with stage.client() as api:
        api.delete(f"/tenants/{tenant}")


@fault(
    "tenant-quota",
    "PeterRecTenantOverQuota",
    told="a client of a tenant asked more often than its quota allows",
)
def client_runs_away(stage: Stage) -> Iterator[Owner]:
    stage.variables["TENANT"] = "runaway"
    with stage.client() as api, ExitStack() as callers:
        made = make_tenant(api, "runaway", quotas={"rows_per_s": 5, "tasks": 20})
        push_films(stage.server, made, stage.workshop.bundle("value", seed=7))
        stage.variables["KEY_ID"] = made.keys["predict"]["key_id"]
        stage.variables["TENANT_KEY"] = made.secret("admin")

        def ask(_: httpx.Client) -> object:
            with as_caller(stage.server, made, "predict") as caller:
                return caller.post("/tasks/films/predict", json={"history": [1]})

        callers.enter_context(calling(ask, ask, server=stage.server))
        yield nobody
        callers.close()
        api.delete("/tenants/runaway")


@fault(
    "tenant-quota",
    "PeterRecTenantNearQuota",
    told="a tenant registered as many tasks as it may",
)
def tenant_is_full(stage: Stage) -> Iterator[Owner]:
    stage.variables["TENANT"] = "full"
    with stage.client() as api:
        made = make_tenant(api, "full", quotas={"tasks": 1, "rows_per_s": 1000})
        push_films(stage.server, made, stage.workshop.bundle("value", seed=7))
        yield nobody
        api.delete("/tenants/full")


@fault(
    "refused",
    "PeterRecConnectionsRefused",
    told="one client held all connections of its address, each with a call that it never ended",
)
def connections_in_use(stage: Stage) -> Iterator[Owner]:
    with _connections(stage, is_busy=True, per_s=40) as stop:
        yield stop


@fault(
    "refused",
    "PeterRecIdleConnectionsClosed",
    told="one client opened connections without end and asked nothing",
)
def idle_connections(stage: Stage) -> Iterator[Owner]:
    with _connections(stage, is_busy=False, per_s=100) as stop:
        yield stop


@contextmanager
def _connections(stage: Stage, *, is_busy: bool, per_s: int) -> Iterator[Owner]:
    """Open connections without end; busy ones begin a call and never end it."""
    opened: list[socket.socket] = []
    key = stage.server.key
    head = f"POST /tasks/usual/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"

    def open_one(_: httpx.Client) -> object:
        for _number in range(max(1, per_s // 50)):
            with suppress(OSError):
                made = socket.create_connection(("127.0.0.1", stage.server.port), 2)
                opened.append(made)
                if is_busy:
                    made.sendall(f"{head}Content-Length: 9\r\n\r\n{{".encode())
        while len(opened) > 400:
            opened.pop(0).close()
        return None

    with ExitStack() as running:
        running.enter_context(calling(open_one, server=stage.server))

        def stop() -> None:
            running.close()
            while opened:
                opened.pop().close()

        try:
            yield stop
        finally:
            stop()


@fault(
    "refused",
    "PeterRecRequestsRefused",
    told="a client with a wrong key asked some dozens of times a second",
    is_quick=True,
)
def nonsense(stage: Stage) -> Iterator[Owner]:
    with stage.client() as api, ExitStack() as running:
        push(api, "usual", stage.workshop.bundle("value", seed=41))

        def ask(client: httpx.Client) -> object:
            client.headers["Authorization"] = "Bearer prk_nobody"
            return client.post("/tasks/usual/predict", content=b"{")

        running.enter_context(calling(ask, ask, server=stage.server))
        yield running.close


@fault(
    "descriptors",
    "PeterRecOutOfDescriptors",
    told="the limit of a running worker was set below what it holds (`prlimit --nofile`)",
    is_quick=True,
)
def few_descriptors(stage: Stage) -> Iterator[Owner]:
    eventually(stage.server.is_ready, 60)
    worker = stage.server.child("worker")
    _, hard = worker.rlimit(psutil.RLIMIT_NOFILE)
    worker.rlimit(psutil.RLIMIT_NOFILE, (4, hard))

    def knock(_: httpx.Client) -> object:
        return httpx.get(f"{stage.server.url}/livez", trust_env=False, timeout=1)

    with calling(knock, knock, server=stage.server):
        yield nobody


@fault(
    "revision-skew",
    "PeterRecRevisionSkew",
    told="one replica was locked out of Redis, then a version was pushed at the other",
)
def locked_out(stage: Stage) -> Iterator[Owner]:
    with stage.second() as two, stage.redis.client() as redis, stage.client() as api:
        stage.variables["REPLICA_REDIS_URL"] = two.redis_url
        redis.execute_command("ACL", "SETUSER", OTHER_USER, "off")
        redis.execute_command("CLIENT", "KILL", "USER", OTHER_USER)
        push(api, "newer", stage.workshop.bundle("value", seed=51))
        yield partial(redis.execute_command, "ACL", "SETUSER", OTHER_USER, "on")


@fault(
    "swap-fails",
    "PeterRecSwapFails",
    told="a second replica had too little room for patches",
)
def no_room(stage: Stage) -> Iterator[Owner]:
    with stage.client() as api:
        push(api, "roomy", stage.workshop.bundle("value", seed=61))
    with stage.second(patch_limit_bytes=1) as two:

        def restart() -> None:
            two.stop()
            two.start()

        yield restart


@fault(
    "swap-fails",
    "PeterRecSwapFails",
    told="the bytes of a bundle in Redis were damaged before a second replica read them",
)
def damaged_blob(stage: Stage) -> Iterator[Owner]:
    bundle = stage.workshop.bundle("value", seed=62)
    stage.variables |= {"TASK": "damaged", "FILE": stage.file("damaged.bundle", bundle).name}
    with stage.client() as api:
        digest = push(api, "damaged", bundle).json()["digest"].removeprefix("sha256:")
    with stage.redis.client() as redis:
        for key in redis.scan_iter(f"*blob:*{digest}*"):
            redis.setrange(key, len(bundle) // 2, "damage")
    with stage.second():
        yield nobody


@fault(
    "unknown-items",
    "PeterRecUnknownItems",
    told="a caller began to send ids that the backbone does not know",
)
def other_ids(stage: Stage) -> Iterator[Owner]:
    stage.variables |= {"TASK": "ids", "ITEM": "sku-1193"}
    strange = [[f"sku-{item}" for item in user] for user in USERS]
    with stage.client() as api:
        push(api, "ids", stage.workshop.bundle("value", seed=71))
    with calling(asks_for("ids", USERS), server=stage.server):
        time.sleep(30)  # the usual share, that the mean of the week is made of
    with ExitStack() as running:
        running.enter_context(calling(asks_for("ids", strange), server=stage.server))
        running.enter_context(calling(asks_for("ids", USERS), server=stage.server))

        def correct() -> None:
            running.close()
            again = stack.enter_context(ExitStack())
            again.enter_context(calling(asks_for("ids", USERS), server=stage.server))

        with ExitStack() as stack:
            yield correct


@fault(
    "answers-drift",
    "PeterRecAnswersDrift",
    told="a version was pushed that answers the opposite of what its training recorded",
)
def drifting_version(stage: Stage) -> Iterator[Owner]:
    task = stage.variables["TASK"] = "gender"
    bundle = stage.workshop.bundle("classification", seed=81, outputs=2)
    with stage.client() as api:
        push(api, task, bundle)
        asked = [{"history": user} for user in USERS]
        answer = api.post(f"/tasks/{task}/predict", json={"instances": asked[:256]})
        sound = with_prior(bundle, answer.json()["predictions"])
        push(api, task, sound)
        push(api, task, opposite_bundle(sound))
    with calling(*[asks_for(task, USERS)] * 3, server=stage.server):
        yield nobody


@fault(
    "answers-drift",
    "PeterRecOneListForAll",
    told="a version was pushed whose ranking does not depend on the history",
)
def one_list(stage: Stage) -> Iterator[Owner]:
    task = stage.variables["TASK"] = "next-item"
    make = stage.workshop.bundle
    with stage.client() as api:
        push(api, task, make("ranking", seed=91, outputs=60))
        push(api, task, make("ranking", seed=92, outputs=60, reads_network=False))
    with calling(*[asks_for(task, USERS)] * 3, server=stage.server):
        yield nobody
