"""Webhooks are told of every change, in order and at least once, whatever receivers do."""

import base64
import hashlib
import hmac
import threading
import time
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from tests.e2e.conftest import push
from tests.e2e.neighbours import as_caller, make_tenant
from tests.e2e.receiver import Message, Receiver, running_receiver
from tests.e2e.running import RunningServer, kill_everything, running_server
from tests.waiting import eventually

TOLD_S = 30.0
HERE = "127.0.0.0/8"
DELIVERED, DISABLED = (
    f'peterrec_webhook_attempts_total{{outcome="{outcome}"}}'
    for outcome in ("delivered", "disabled")
)


@pytest.fixture(scope="module")
def told(workshop, tmp_path_factory) -> Iterator[RunningServer]:
    """A server whose operator allows webhooks to this machine."""
    folder = tmp_path_factory.mktemp("told")
    with running_server(workshop.folder, folder, workers=1, webhook_networks=HERE) as server:
        yield server


@pytest.fixture
def api(told) -> Iterator[httpx.Client]:
    with told.client() as client:
        yield client
        for hook in client.get("/webhooks").json():
            client.delete(f"/webhooks/{hook['name']}")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


def put(api: httpx.Client, name: str, url: str, **body: object) -> dict:
    answer = api.put(f"/webhooks/{name}", json={"url": url, **body})
    assert answer.status_code in {200, 201}, answer.text
    return answer.json()


def change(api: httpx.Client, number: int, task: str = "told") -> int:
    """Make a change and return its revision."""
    answer = api.put(f"/tasks/{task}", json={"description": f"{uuid4()} {number}"})
    assert answer.status_code in {200, 201}, answer.text
    return answer.json()["registry_revision"]


def signature_of(secret: str, message: Message) -> str:
    """Sign a message as the specification Standard Webhooks says."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{message.id}.{message.headers['webhook-timestamp']}.".encode() + message.body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def test_every_change_is_told_in_order_with_a_signature_and_a_time_stamp(api, told, receiver):
    hook = put(api, "ci", receiver.url)
    assert hook["secret"].startswith("whsec_")
    revisions = [change(api, number) for number in range(5)]
    eventually(lambda: receiver.revisions == revisions, TOLD_S)
    for message in receiver.messages:
        assert message.headers["webhook-signature"] == signature_of(hook["secret"], message)
        assert abs(int(message.headers["webhook-timestamp"]) - time.time()) < TOLD_S
        assert message.headers["content-type"] == "application/json"
        assert message.headers["path"] == "/hook?a=1"
        assert message.headers["host"] == f"127.0.0.1:{receiver.port}"
    trail = api.get("/registry/audit", params={"since": revisions[0] - 1}).json()["events"]
    assert [message.event for message in receiver.taken] == [
        {name: value for name, value in event.items() if value is not None} for event in trail
    ]
    eventually(lambda: api.get("/webhooks/ci").json()["cursor"] == revisions[-1])
    shown = api.get("/webhooks/ci").json()
    assert "secret" not in shown
    assert (shown["delivered"], shown["failures"]) == (5, 0)
    eventually(lambda: told.metrics()[DELIVERED] >= 5)


def test_a_failed_delivery_is_repeated_before_the_next_one(api, receiver):
    failing = iter([500, 301, 404])
    receiver.answer = lambda message: next(failing, 204)
    put(api, "flaky", receiver.url)
    first, second = change(api, 1), change(api, 2)
    eventually(lambda: receiver.revisions == [first, second], TOLD_S)
    assert [message.event["revision"] for message in receiver.messages] == [first] * 4 + [second]
    assert len({message.id for message in receiver.messages}) == 2
    stamps = [int(message.headers["webhook-timestamp"]) for message in receiver.messages]
    assert stamps[3] - stamps[0] >= 3  # 1 s, 2 s and 4 s, give or take


def test_a_receiver_that_does_not_answer_holds_up_no_other(api, receiver):
    released = threading.Event()
    with running_receiver() as slow:
        slow.answer = lambda message: 204 if released.wait(TOLD_S) else 500
        put(api, "a-slow", slow.url)
        put(api, "b-quick", receiver.url)
        revisions = [change(api, number) for number in range(20)]
        eventually(lambda: receiver.revisions == revisions, TOLD_S)
        assert slow.taken == []
        eventually(lambda: api.get("/webhooks/a-slow").json()["last_error"] == "timeout", TOLD_S)
        released.set()
        eventually(lambda: slow.revisions[-1:] == revisions[-1:], TOLD_S)
        assert sorted({*slow.revisions}) == sorted({*revisions, *slow.revisions})


def test_a_receiver_that_wants_no_more_is_disabled_with_an_entry_in_the_trail(api, told, receiver):
    receiver.answer = lambda message: 410
    put(api, "gone", receiver.url)
    change(api, 1)
    eventually(lambda: not api.get("/webhooks/gone").json()["is_enabled"], TOLD_S)
    hook = api.get("/webhooks/gone").json()
    assert hook["disabled_since"] == "1 attempts failed, the last with http_410"
    trail = api.get("/registry/audit", params={"since": hook["revision"]}).json()["events"]
    (entry,) = [each for each in trail if each["action"] == "disable_webhook"]
    assert (entry["actor"], entry["note"]) == ("system", f"gone: {hook['disabled_since']}")
    eventually(lambda: told.metrics()[DISABLED] >= 1)
    receiver.answer = lambda message: 204
    change(api, 2)
    put(api, "gone", receiver.url)  # begins with what comes from now on
    revision = change(api, 3)
    eventually(lambda: receiver.revisions == [revision], TOLD_S)


def test_a_receiver_that_fails_for_too_long_is_disabled(workshop, tmp_path, receiver):
    receiver.answer = lambda message: 503
    with (
        running_server(
            workshop.folder,
            tmp_path,
            workers=1,
            webhook_networks=HERE,
            webhook_give_up_days=2 / 86_400,
        ) as server,
        server.client() as api,
    ):
        put(api, "dead", receiver.url)
        change(api, 1)
        eventually(lambda: not api.get("/webhooks/dead").json()["is_enabled"], TOLD_S)
        assert len(receiver.messages) >= 2
        eventually(lambda: server.metrics()[DISABLED] == 1)


def test_tenants_are_told_of_their_own_changes_and_see_no_other_hooks(api, told, receiver):
    one = make_tenant(api, f"one-{uuid4().hex[:8]}")
    other = make_tenant(api, f"other-{uuid4().hex[:8]}")
    with as_caller(told, one, "admin") as own, as_caller(told, other, "admin") as neighbour:
        put(own, "hook", receiver.url)
        change(neighbour, 1)
        change(api, 2)
        revision = change(own, 3)
        eventually(lambda: receiver.revisions == [revision], TOLD_S)
        assert neighbour.get("/webhooks").json() == []
        assert neighbour.get("/webhooks/hook").status_code == 404
        assert neighbour.delete("/webhooks/hook").status_code == 404
        assert neighbour.get(f"/tenants/{one.name}/webhooks").status_code == 403
        (listed,) = api.get(f"/tenants/{one.name}/webhooks").json()
        assert (listed["name"], listed["tenant"]) == ("hook", one.name)
        api.delete(f"/tenants/{one.name}")
        eventually(lambda: own.get("/webhooks").status_code == 401)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook",
        "https://127.0.0.1/hook",
        "https://[::1]/hook",
        "https://169.254.169.254/latest/meta-data",
        "https://[::ffff:10.0.0.1]/hook",
        "https://user:password@example.com/",
        "ftp://example.com/",
        "https:///hook",
        "https://example.com:0/",
    ],
)
def test_a_url_that_can_never_be_reached_is_refused(server, url):
    with server.client() as client:
        answer = client.put("/webhooks/bad", json={"url": url})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_webhook")


def test_a_name_that_stands_for_this_machine_is_not_connected_to(server, receiver):
    with server.client() as client:
        put(client, "inside", f"https://localhost:{receiver.port}/")
        change(client, 1, task="inside")
        eventually(
            lambda: client.get("/webhooks/inside").json()["last_error"] == "address_forbidden",
            TOLD_S,
        )
        client.delete("/webhooks/inside")
        client.delete("/tasks/inside")
    assert receiver.messages == []


def test_a_tenant_has_a_bounded_number_of_webhooks(api, receiver):
    for number in range(8):
        put(api, f"hook{number}", receiver.url)
    answer = api.put("/webhooks/one-more", json={"url": receiver.url})
    assert (answer.status_code, answer.json()["code"]) == (507, "too_many_webhooks")
    put(api, "hook0", receiver.url, secret="whsec_" + base64.b64encode(bytes(24)).decode())
    answer = api.put("/webhooks/hook0", json={"url": receiver.url, "secret": "short"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_webhook")


@pytest.mark.slow
def test_nothing_is_lost_when_the_delivering_replica_dies_in_the_middle(
    workshop, redis_url, tmp_path, receiver
):
    shared = {"redis_url": redis_url, "redis_prefix": f"test-{uuid4().hex}", "auth": "off"}
    shared |= {"workers": 1, "webhook_networks": HERE}
    with running_server(workshop.folder, tmp_path / "a", **shared) as first:
        with first.client() as api:
            put(api, "ci", receiver.url)
            revisions = [change(api, 0)]
        eventually(lambda: first.metrics()[DELIVERED] == 1, TOLD_S)  # so it holds the lease
        with running_server(workshop.folder, tmp_path / "b", **shared) as second:
            asked, dead = threading.Event(), threading.Event()

            def die_in_the_middle(message: Message) -> int:
                if not asked.is_set():
                    asked.set()
                    dead.wait(TOLD_S)
                return 204

            receiver.answer = die_in_the_middle
            with second.client() as api:
                revisions += [change(api, number) for number in range(1, 6)]
                assert asked.wait(TOLD_S)
                kill_everything(first)
                dead.set()
                revisions += [change(api, number) for number in range(6, 9)]
                push(api, "gender", workshop.bundle("classification", 1))
                revisions.append(api.get("/registry/replicas").json()["registry_revision"])
                eventually(lambda: receiver.revisions[-1:] == revisions[-1:], 2 * TOLD_S)
            eventually(lambda: second.metrics()[DELIVERED] >= len(revisions) - 1)
    came = list(dict.fromkeys(receiver.revisions))
    assert came == sorted(came) == revisions
    again = len(receiver.revisions) - len(came)
    assert again <= 1  # what was under way when the replica died
