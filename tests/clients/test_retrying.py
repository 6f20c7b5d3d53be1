"""When and how slowly both clients try again, seen by a real HTTP server."""

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from peterrec_client import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PeterRecError,
    RetryPolicy,
    ServerFailed,
    ServerUnreachable,
    Unavailable,
    UnexpectedAnswer,
)
from tests.clients.scripted_server import (
    HangUp,
    Scripted,
    ScriptedServer,
    Silence,
    scripted_server,
)
from tests.e2e.running import free_port

HEALTH = {"status": "not_ready", "reasons": ["draining"], "registry_revision": 4}
PREDICTION = {
    "kind": "value",
    "value": 1.5,
    "used_items": 1,
    "unknown_items": 0,
    "unknown": [],
    "truncated": False,
    "cold": False,
}
ANSWER = {
    "task": "gender",
    "version": 7,
    "digest": "sha256:5f1c",
    "alias": "prod",
    "kind": "value",
    "registry_revision": 42,
    "request_id": "a-1",
    "predictions": [PREDICTION],
}
OK = Scripted(body=json.dumps(ANSWER).encode())


def refusal(status, code="device_unavailable", **headers):
    problem = {
        "type": f"urn:peterrec:error:{code}",
        "title": code,
        "status": status,
        "code": code,
        "detail": "not now.",
        "hint": "Try again.",
        "request_id": "a-1",
        "retryable": status in (429, 503),
        "error": code,
        "a_field_of_the_future": {"x": 1},
    }
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Scripted(status, json.dumps(problem).encode(), named)


@dataclass
class Time:
    """A clock that only sleeping moves."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def script(time) -> Iterator[ScriptedServer]:
    with scripted_server(time.clock) as script:
        yield script


@pytest.fixture
def client(make, script, time):
    return make(script.url, "prk_key", clock=time.clock, sleep=time.sleep)


def test_a_refusal_that_asks_to_wait_is_tried_again_after_that_time(client, script, time):
    busy = refusal(503, retry_after="1")
    script.steps = [busy, busy, OK]
    assert client.predict("gender", [1]).value == 1.5
    first, second, third = script.asked
    assert first.body == second.body == third.body
    assert 1.0 <= second.at - first.at <= 1.1
    assert 1.0 <= third.at - second.at <= 1.2
    assert len(time.slept) == 2


def test_too_many_requests_are_tried_again_too(client, script):
    script.steps = [refusal(429, "queue_full", retry_after="0"), OK]
    assert client.predict("gender", [1]).value == 1.5


def test_a_date_to_wait_for_is_read_by_the_servers_own_clock(client, script, time):
    script.steps = [
        refusal(
            503,
            date="Wed, 01 Jan 2020 10:00:00 GMT",
            retry_after="Wed, 01 Jan 2020 10:00:02 GMT",
        ),
        OK,
    ]
    client.predict("gender", [1])
    assert 2.0 <= time.slept[0] <= 2.1


@pytest.mark.parametrize("wish", ["Wed, 01 Jan 2020 10:00:02 GMT", "soon", "", "-5", "1e9"])
def test_a_retry_after_that_is_past_or_unreadable_is_ignored(client, script, time, wish):
    script.steps = [refusal(503, retry_after=wish), OK]
    client.predict("gender", [1])
    assert 0.05 <= time.slept[0] <= 0.1


def test_waits_without_a_retry_after_double_up_to_the_longest(make, script, time):
    policy = RetryPolicy(attempts=6, first_wait_s=0.1, max_wait_s=0.4)
    client = make(script.url, retry=policy, clock=time.clock, sleep=time.sleep)
    script.steps = [refusal(503)]
    with pytest.raises(Unavailable):
        client.predict("gender", [1])
    longest = [0.1, 0.2, 0.4, 0.4, 0.4]
    assert len(time.slept) == len(longest)
    assert all(most / 2 <= slept <= most for slept, most in zip(time.slept, longest, strict=True))


def test_the_last_refusal_is_raised_when_all_attempts_failed(client, script):
    script.steps = [refusal(503), refusal(429, "queue_full")]
    with pytest.raises(Overloaded) as refused:
        client.predict("gender", [1])
    assert len(script.asked) == RetryPolicy().attempts
    assert (refused.value.code, refused.value.status, refused.value.retryable) == (
        "queue_full",
        429,
        True,
    )
    assert str(refused.value) == "queue_full: not now. Try again. (request a-1)"


def test_no_wait_begins_that_ends_beyond_the_deadline(client, script, time):
    script.steps = [refusal(503, retry_after="60"), OK]
    with pytest.raises(Unavailable):
        client.predict("gender", [1])
    assert (len(script.asked), time.slept) == (1, [])


def test_each_attempt_sends_the_time_left_to_the_server(client, script, time):
    script.steps = [refusal(503, retry_after="1"), OK]
    client.predict("gender", [1], timeout_s=3.0)
    told = [int(asked.headers["x-request-timeout-ms"]) for asked in script.asked]
    assert told[0] == 3000
    assert told[1] == pytest.approx(3000 - 1000 * time.slept[0], abs=1)


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, InvalidRequest), (404, NotFound), (500, ServerFailed), (504, DeadlineExceeded)],
)
def test_other_refusals_are_raised_immediately(client, script, status, error):
    script.steps = [refusal(status, retry_after="1"), OK]
    with pytest.raises(error):
        client.predict("gender", [1])
    assert len(script.asked) == 1


def test_one_attempt_means_no_second_one(make, script):
    script.steps = [refusal(503), OK]
    with pytest.raises(Unavailable):
        make(script.url, retry=RetryPolicy(attempts=1)).predict("gender", [1])
    assert len(script.asked) == 1


def test_a_policy_without_any_attempt_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        RetryPolicy(attempts=0)


def test_a_broken_connection_is_tried_again(client, script):
    script.steps = [HangUp(), OK]
    assert client.predict("gender", [1]).value == 1.5


def test_a_missing_server_is_tried_again_and_then_unreachable(make, time):
    client = make(f"http://127.0.0.1:{free_port()}", clock=time.clock, sleep=time.sleep)
    with pytest.raises(ServerUnreachable) as refused:
        client.predict("gender", [1])
    assert len(time.slept) == RetryPolicy().attempts - 1
    assert (refused.value.code, refused.value.status) == ("server_unreachable", None)
    assert isinstance(refused.value.__cause__, httpx.ConnectError)


def test_an_invalid_url_is_not_tried_again(make, time):
    with pytest.raises(ServerUnreachable):
        make("127.0.0.1", clock=time.clock, sleep=time.sleep).predict("gender", [1])
    assert time.slept == []


def test_a_silent_server_ends_in_the_calls_own_time_limit(client, script):
    script.steps = [Silence()]
    with pytest.raises(DeadlineExceeded) as late:
        client.predict("gender", [1], timeout_s=0.1)
    assert (late.value.code, late.value.status) == ("client_timeout", None)
    assert len(script.asked) == 1


def test_a_push_is_repeated_with_its_whole_file(client, script, tmp_path):
    path = tmp_path / "big.bundle"
    path.write_bytes(bytes(range(256)) * 10_000)
    pushed = {
        "task": "gender",
        "digest": "sha256:5f1c",
        "alias": "prod",
        "version": 1,
        "registry_revision": 2,
        "summary": {
            "name": "gender",
            "kind": "value",
            "outputs": 1,
            "backbone": "3fa1",
            "size_bytes": 1,
            "patch_bytes": 1,
            "head_bytes": 1,
            "metrics": {},
        },
    }
    script.steps = [refusal(503), HangUp(), Scripted(201, json.dumps(pushed).encode())]
    assert client.push("gender", path).version == 1
    assert [asked.body for asked in script.asked] == [path.read_bytes()] * 3
    assert "transfer-encoding" not in script.asked[0].headers
    assert script.asked[0].path == "/tasks/gender/versions?alias=prod&validate_only=false"


@pytest.mark.parametrize("step", [refusal(503), HangUp()])
def test_a_change_that_may_have_happened_is_not_repeated(client, script, tmp_path, step):
    script.steps = [step]
    path = tmp_path / "small.bundle"
    path.write_bytes(b"x")
    for change in (
        lambda: client.rollback("gender"),
        lambda: client.delete_task("gender"),
        lambda: client.set_alias("gender", 1, if_revision=3),
        lambda: client.push("gender", path, if_revision=3),
    ):
        script.asked.clear()
        with pytest.raises((Unavailable, ServerUnreachable)):
            change()
        assert len(script.asked) == 1


def test_a_change_that_was_never_sent_is_repeated(make, time):
    client = make(f"http://127.0.0.1:{free_port()}", clock=time.clock, sleep=time.sleep)
    with pytest.raises(ServerUnreachable):
        client.rollback("gender")
    assert len(time.slept) == RetryPolicy().attempts - 1


def test_not_ready_is_an_answer(client, script):
    script.steps = [Scripted(503, json.dumps(HEALTH).encode(), {"retry-after": "1"})]
    found = client.ready()
    assert (found.is_ready, found.reasons) == (False, ("draining",))
    assert len(script.asked) == 1


def test_the_answer_of_a_proxy_becomes_the_error_of_its_status(client, script):
    script.steps = [Scripted(502, b"<html>Bad gateway</html>")]
    with pytest.raises(Unavailable) as refused:
        client.predict("gender", [1])
    assert refused.value.code == "http_502"
    assert "Bad gateway" in str(refused.value)
    assert len(script.asked) == RetryPolicy().attempts


@pytest.mark.parametrize(
    "step",
    [
        Scripted(200, b"<html>"),
        Scripted(200, b"{}"),
        Scripted(200, b"\xff"),
        Scripted(204, b""),
        Scripted(307, b"", {"location": "/elsewhere"}),
        Scripted(200, json.dumps({**ANSWER, "predictions": []}).encode()),
        Scripted(200, b"1", {"content-encoding": "gzip"}),
    ],
)
def test_an_unreadable_answer_is_unexpected(client, script, step):
    script.steps = [step]
    with pytest.raises((UnexpectedAnswer, ServerUnreachable)):
        client.predict("gender", [1])
    assert len(script.asked) == 1


def test_fields_of_a_newer_server_are_ignored(client, script):
    prediction = {**PREDICTION, "provenance": {"because": [1]}}
    newer = {**ANSWER, "predictions": [prediction], "replica": "r-2"}
    script.steps = [Scripted(200, json.dumps(newer).encode())]
    assert client.predict("gender", [1]).value == 1.5


def test_a_kind_of_a_newer_server_fails_only_its_own_slot(client, script):
    known = {**PREDICTION, "version": 7, "digest": "sha256:5f", "alias": "prod"}
    card = {
        "registry_revision": 42,
        "request_id": "a-1",
        "results": {"spend": known, "novel": {**known, "kind": "embedding", "vector": [1.0]}},
        "errors": {},
    }
    script.steps = [Scripted(200, json.dumps(card).encode())]
    found = client.predict_user([1])
    assert set(found.results) == {"spend"}
    assert found.errors["novel"].code == "unexpected_answer"


def test_calls_one_after_another_share_a_connection(client, script):
    script.steps = [OK]
    for _ in range(3):
        client.predict("gender", [1])
    assert len({asked.connection for asked in script.asked}) == 1


def test_requests_carry_the_key_and_say_who_asks(client, script):
    script.steps = [OK]
    client.predict("gender", [1])
    headers = script.asked[0].headers
    assert headers["authorization"] == "Bearer prk_key"
    assert headers["user-agent"].startswith("peterrec-client/")
    assert headers["content-type"] == "application/json"


def test_an_error_survives_pickling(client, script):
    script.steps = [refusal(404, "task_not_found")]
    with pytest.raises(PeterRecError) as refused:
        client.predict("gender", [1])
    copy = pickle.loads(pickle.dumps(refused.value))
    assert (type(copy), copy.code, str(copy)) == (NotFound, "task_not_found", str(refused.value))


def test_the_key_is_in_no_error_and_no_representation(client, script):
    script.steps = [refusal(500)]
    with pytest.raises(PeterRecError) as refused:
        client.predict("gender", [1])
    assert "prk_key" not in f"{refused.value!s} {refused.value!r} {client!r}"
