"""Retry budgets, hedged attempts and batches of concurrent calls, at real servers."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from peterrec_client import (
    AsyncClient,
    InvalidRequest,
    NotFound,
    Overloaded,
    RetryPolicy,
    TooLarge,
    Unavailable,
)
from tests.clients.scripted_server import Scripted, ScriptedServer, Silence, scripted_server
from tests.clients.test_retrying import ANSWER, OK, PREDICTION, Time, refusal

BUSY = refusal(503, retry_after="0")


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def script(time) -> Iterator[ScriptedServer]:
    with scripted_server(time.clock) as script:
        yield script


def test_a_server_that_is_down_is_not_asked_several_times_as_often(make, script, time):
    policy = RetryPolicy(attempts=4, budget_share=0.2, budget_reserve=5)
    client = make(script.url, clock=time.clock, sleep=time.sleep, retry=policy, timeout_s=60)
    script.steps = [BUSY]
    for _ in range(50):
        with pytest.raises(Unavailable):
            client.predict("films", [1])
    assert 50 + 5 <= len(script.asked) <= 50 + 5 + 10


def test_calls_that_succeed_earn_further_attempts(make, script, time):
    policy = RetryPolicy(budget_share=0.5, budget_reserve=1)
    client = make(script.url, clock=time.clock, sleep=time.sleep, retry=policy)
    script.steps = [BUSY, OK, BUSY, OK, OK, BUSY, OK]
    client.predict("films", [1])  # takes what there is
    with pytest.raises(Unavailable):
        client.predict("films", [1])
    client.predict("films", [1])
    client.predict("films", [1])
    assert client.predict("films", [1]).value == 1.5
    assert len(script.asked) == 7


def test_a_slow_prediction_is_asked_for_a_second_time(make, script):
    client = make(script.url, hedge_after_s=0.05, timeout_s=20)
    script.steps = [Silence(), OK]
    assert client.predict("films", [1]).value == 1.5
    assert [asked.path for asked in script.asked] == ["/tasks/films/predict"] * 2
    assert script.asked[0].body == script.asked[1].body


def test_a_second_attempt_that_is_refused_leaves_the_first_one_its_time(make, script):
    client = make(script.url, hedge_after_s=0.05, timeout_s=1)
    script.steps = [Silence(), BUSY, OK]
    with pytest.raises(Exception, match="no answer within"):
        client.predict("films", [1])
    assert len(script.asked) == 2


def test_quick_answers_and_changes_are_never_hedged(make, script):
    client = make(script.url, hedge_after_s=5.0)
    script.steps = [OK]
    client.predict("films", [1])
    assert len(script.asked) == 1
    client = make(script.url, hedge_after_s=0.01, timeout_s=0.3)
    script.steps = [Silence()]
    with pytest.raises(Exception, match="no answer within"):
        client.backbone()
    assert len(script.asked) == 2


def test_hedged_attempts_have_the_budget_of_retries(make, script):
    policy = RetryPolicy(attempts=1, budget_reserve=0)
    client = make(script.url, hedge_after_s=0.01, timeout_s=0.3, retry=policy)
    script.steps = [Silence()]
    with pytest.raises(Exception, match="no answer within"):
        client.predict("films", [1])
    assert len(script.asked) == 1


async def test_concurrent_predictions_of_one_task_are_one_call(script):
    script.steps = [Scripted(body=json.dumps({**ANSWER, "predictions": [PREDICTION] * 3}).encode())]
    async with AsyncClient(script.url, batch_window_s=0.02) as client:
        answers = await asyncio.gather(*[client.predict("films", [n], user_id=n) for n in range(3)])
    assert answers == [answers[0]] * 3
    (asked,) = script.asked
    assert [each["history"] for each in json.loads(asked.body)["instances"]] == [[0], [1], [2]]


async def test_predictions_with_other_parameters_are_other_calls(script):
    script.steps = [OK]
    async with AsyncClient(script.url, batch_window_s=0.02) as client:
        await asyncio.gather(
            client.predict("films", [1]),
            client.predict("books", [1]),
            client.predict("films", [1], top_k=3),
        )
    assert len(script.asked) == 3


async def test_a_batch_has_at_most_as_many_users_as_a_call_may_have(script):
    def answer(count: int) -> Scripted:
        return Scripted(body=json.dumps({**ANSWER, "predictions": [PREDICTION] * count}).encode())

    script.steps = [answer(256), answer(44)]
    async with AsyncClient(script.url, batch_window_s=0.2) as client:
        await asyncio.gather(*[client.predict("films", [n]) for n in range(300)])
    assert sorted(len(json.loads(a.body)["instances"]) for a in script.asked) == [44, 256]


async def test_whoever_leaves_a_batch_is_not_asked_for(script):
    script.steps = [OK]
    async with AsyncClient(script.url, batch_window_s=0.05) as client:
        leaving = asyncio.create_task(client.predict("films", [1]))
        staying = asyncio.create_task(client.predict("films", [2]))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying).task == "gender"
    assert [each["history"] for each in json.loads(script.asked[0].body)["instances"]] == [[2]]


async def test_each_of_a_batch_has_its_own_answer_or_the_error_of_a_call_alone(server):
    histories: list[list[int | str]] = [[1, 2], ["nope"], [1] * 10_001, []]
    async with AsyncClient(server.url, server.key, batch_window_s=0.02) as batching:
        together = await ask_all(batching, histories)
    async with AsyncClient(server.url, server.key) as client:
        alone = await ask_all(client, histories)
    assert together == alone
    assert [each[0] for each in together] == [
        "ValuePrediction",
        InvalidRequest.__name__,
        TooLarge.__name__,
        "ValuePrediction",
        NotFound.__name__,
    ]


async def ask_all(
    client: AsyncClient, histories: list[list[int | str]]
) -> list[tuple[object, ...]]:
    """Return what concurrent predictions give: type, and number or code, status and message."""
    asked = [client.predict("value", each, unknown_items="error") for each in histories]
    found = await asyncio.gather(*asked, client.predict("nothing", [1]), return_exceptions=True)
    names = ("value", "code", "status", "message")
    return [(type(each).__name__, *(getattr(each, name, None) for name in names)) for each in found]


async def test_a_refusal_of_the_whole_batch_reaches_everybody_in_it(script):
    script.steps = [refusal(429, "queue_full", retry_after="0")]
    policy = RetryPolicy(attempts=1)
    async with AsyncClient(script.url, batch_window_s=0.01, retry=policy) as client:
        errors = await asyncio.gather(
            *[client.predict("films", [n]) for n in range(3)], return_exceptions=True
        )
    assert [type(each) for each in errors] == [Overloaded] * 3
