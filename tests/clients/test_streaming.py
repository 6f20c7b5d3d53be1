"""Streams of predictions: lazily sent, answered in order, in bounded memory, by a real server."""

import asyncio
import pickle
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import pytest

from peterrec_client import (
    AsyncClient,
    ClassificationPrediction,
    Client,
    FailedInstance,
    Instance,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServerUnreachable,
    StreamBroken,
    Unauthenticated,
    UserPrediction,
    ValuePrediction,
)
from tests.service.random_bundles import ITEMS
from tests.waiting import eventually


class Streaming:
    """The streams of an ``AsyncClient`` as plain iterators, so that a test covers both clients."""

    def __init__(self, *arguments: str, **options: Any) -> None:  # Any: keywords of the client
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **options)

    def __enter__(self) -> "Streaming":
        return self

    def __exit__(self, *about: object) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()

    def __getattr__(self, name: str) -> Callable[..., Iterator[Any]]:
        def call(*arguments: object, **options: object) -> Iterator[Any]:
            return self._blocking(getattr(self._client, name)(*arguments, **options))

        return call

    def _blocking(self, answers: Any) -> Iterator[Any]:  # Any: answers of each kind
        try:
            while True:
                try:
                    yield self._runner.run(anext(answers))
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(answers.aclose())


@pytest.fixture(params=["sync", "async"])
def connect(request):
    return Client if request.param == "sync" else Streaming


@pytest.fixture
def client(connect, server):
    with connect(server.url, server.key) as client:
        yield client


def users(many: int | None = None) -> Iterator[Instance]:
    """As many users as are asked for; without a number, there is no end of them."""
    for at in islice(count(), many):
        yield Instance(ITEMS[at % 50 : at % 50 + 5], user_id=f"u{at}")


def test_every_user_is_answered_in_order_by_a_typed_prediction(client):
    found = list(client.predict_batch("classification", users(500)))
    assert [answer.user_id for answer in found] == [f"u{at}" for at in range(500)]
    assert {type(answer) for answer in found} == {ClassificationPrediction}
    first = found[0]
    assert (first.task, first.version, first.role) == ("classification", 1, "prod")
    assert first.registry_revision is None
    assert first.request_id


def test_the_answers_are_those_of_a_call(client, server):
    with Client(server.url, server.key) as other:
        alone = other.predict("value", ITEMS[:5])
    (found,) = client.predict_batch("value", [ITEMS[:5]])
    assert isinstance(alone, ValuePrediction)
    assert (found.value, found.digest) == (alone.value, alone.digest)


def test_a_bad_user_is_a_value_that_mirrors_its_error(client):
    wrong: Any = 1.5
    asked = [Instance([1], user_id="a"), Instance([wrong], user_id="b"), Instance([], user_id="c")]
    first, bad, last = client.predict_batch("tags", asked)
    assert (first.user_id, last.user_id, last.cold) == ("a", "c", True)
    assert isinstance(bad, FailedInstance)
    assert (bad.line, bad.error.code) == (2, "malformed_request")
    assert type(bad.exception) is InvalidRequest


def test_many_tasks_answer_every_user(client):
    found = list(client.predict_users_batch(users(3), ["tags", "value"]))
    assert {type(answer) for answer in found} == {UserPrediction}
    assert [answer.user_id for answer in found] == ["u0", "u1", "u2"]
    assert sorted(found[2].results) == ["tags", "value"]
    assert found[2].errors == {}
    every = next(client.predict_users_batch(users(1), "all"))
    assert {"tags", "value", "ranking", "classification"} <= set(every.results)


def test_options_hold_for_all_users(client):
    options = {"top_k": 2, "exclude_seen": False, "version": 1}
    found = list(client.predict_batch("ranking", users(2), **options))
    assert [len(answer.items) for answer in found] == [2, 2]


def test_instances_are_taken_only_as_fast_as_answers_are(client):
    taken = 0

    def watched():
        nonlocal taken
        for user in users():
            taken += 1
            yield user

    answers = client.predict_batch("tags", watched())
    for _ in range(10):
        next(answers)
    answers.close()
    assert taken < 500_000  # the network's buffers hold some megabytes, whatever is read of them


def test_a_long_stream_takes_little_memory_of_the_client(client):
    answers = client.predict_batch("value", users())
    for _ in islice(answers, 500):
        pass
    tracemalloc.start()
    for _ in islice(answers, 3000):
        pass
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    answers.close()
    assert peak_bytes < 4 << 20


def test_a_source_without_users_has_no_answers(client):
    assert list(client.predict_batch("tags", [])) == []


def test_a_refusal_is_raised_as_that_of_any_call(client, connect, server):
    with pytest.raises(NotFound, match="task_not_found"):
        next(client.predict_batch("nothing", users()))
    with connect(server.url, "wrong") as other, pytest.raises(Unauthenticated):
        next(other.predict_batch("tags", users()))
    with connect("http://127.0.0.1:9") as other, pytest.raises(ServerUnreachable):
        next(other.predict_batch("tags", users()))


def test_mistakes_are_raised_before_anything_is_sent(client):
    with pytest.raises(TypeError, match="no option topk"):
        client.predict_batch("tags", users(), topk=1)
    with pytest.raises(TypeError, match="is a list of names"):
        client.predict_users_batch(users(), "tags")


def test_what_the_callers_own_source_raises_is_raised(client):
    def broken():
        yield from users(3)
        raise LookupError("the file ended")

    with pytest.raises(LookupError, match="the file ended"):
        list(client.predict_batch("tags", broken()))


def test_an_asynchronous_source_is_answered_user_by_user(server):
    """The source gives the next user when it has seen the answer to the one before."""

    async def talk() -> list[str]:
        seen: asyncio.Queue[Any] = asyncio.Queue()
        heard = []

        async def source():
            for user in users(3):
                yield user
                heard.append(await asyncio.wait_for(seen.get(), 10))

        async with AsyncClient(server.url, server.key) as client:
            async for answer in client.predict_batch("value", source()):
                seen.put_nowait(answer.user_id)
        return heard

    assert asyncio.run(talk()) == ["u0", "u1", "u2"]


def test_a_cancelled_stream_ends(server):
    async def leave() -> None:
        async with AsyncClient(server.url, server.key) as client:

            async def follow() -> None:
                async for _ in client.predict_batch("tags", users()):
                    pass

            following = asyncio.create_task(follow())
            await asyncio.sleep(0)
            following.cancel()
            with pytest.raises(asyncio.CancelledError):
                await following

    asyncio.run(leave())


def test_a_client_that_stops_early_leaves_nothing_on_the_server(client):
    def has_begun() -> bool:
        answers = client.predict_batch("tags", users())
        try:
            next(answers)
        except Overloaded:  # the server has not yet seen that earlier ones have ended
            return False
        answers.close()
        return True

    for _ in range(6):  # more than the streams that a tenant may have at a time
        eventually(has_begun)


ANSWER = (
    b'{"kind":"value","value":1.5,"version":1,"digest":"sha256:0","alias":"prod","used_items":1,'
    b'"unknown_items":0,"truncated":false,"cold":false}\n'
)
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
)


@contextmanager
def one_answer(*parts: bytes, until: bytes = b"") -> Iterator[str]:
    """A server that sends these bytes to whoever has sent so much, and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked = b""
                while not (asked.endswith(until) and asked):
                    asked += connection.recv(65536)
                for part in parts:
                    connection.sendall(part)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving.join(10)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST = (
    b'{"error":{"code":"server_draining","message":"it stops.","hint":"Wait.","retryable":true}}\n'
)


@pytest.mark.parametrize(
    ("parts", "code", "answered"),
    [
        ([HEAD, chunk(2 * ANSWER)], "server_unreachable", 2),
        ([HEAD, chunk(ANSWER + ANSWER[:9])], "server_unreachable", 1),
        ([HEAD, chunk(2 * ANSWER), b"0\r\n\r\n"], "server_unreachable", 2),
        ([HEAD, chunk(3 * ANSWER + LAST), b"0\r\n\r\n"], "server_draining", 3),
        ([HEAD, chunk(ANSWER + b"<html>\n")], "unexpected_answer", 1),
    ],
    ids=["lost", "half a line", "ended early", "the server says why", "not ours"],
)
def test_a_broken_stream_says_how_many_were_answered(connect, parts, code, answered):
    with one_answer(*parts) as url, connect(url) as client:
        found = []
        with pytest.raises(StreamBroken) as raised:
            found.extend(client.predict_batch("value", users(100)))
    broken = raised.value
    assert (broken.answered, len(found)) == (answered, answered)
    assert broken.code == code
    assert f"the stream broke after {answered} answers" in str(broken)
    assert pickle.loads(pickle.dumps(broken)).answered == answered


def test_separators_of_unicode_in_an_answer_end_no_line(connect):
    strange = ANSWER.replace(b'"alias":"prod"', '"alias":"a\u2028b\x85c"'.encode())
    end = b"0\r\n\r\n"
    with one_answer(HEAD, chunk(strange), end, until=end) as url, connect(url) as client:
        (found,) = client.predict_batch("value", users(1))
    assert found.alias == "a\u2028b\x85c"


def test_a_server_that_says_nothing_is_given_up(connect):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with connect(url) as client, pytest.MonkeyPatch.context() as patch:
            patch.setattr("peterrec_client.streaming.GRACE_S", 0.0)
            with pytest.raises(Exception, match="client_timeout"):
                list(client.predict_batch("value", users(1), timeout_s=0.2))
