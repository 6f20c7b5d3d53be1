"""What one connection may cost, over raw sockets, with times that are short enough for a test."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec
import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from peterrec.service.http.asgi import ClientLeft, RequestHead, read_body
from peterrec.service.http.connection import Connection, EdgeBounds
from peterrec.service.http.peers import SPARE, Peers
from tests.waiting import soon

BOUNDS = EdgeBounds(
    head_bytes=4096, head_fields=20, head_s=0.3, pipelined=4, stalled_s=0.3, late_s=0.3
)
REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: here\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE_ANSWER = b"x" * 20_000_000


@dataclass
class Answer:
    """What came back on a connection until it ended."""

    status: int
    headers: bytes
    body: bytes

    @property
    def code(self) -> str:
        found: str = msgspec.json.decode(self.body)["code"]
        return found


def parse(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    return Answer(int(head.split(b" ")[1]), head.lower(), body)


@dataclass
class Edge:
    """A listening server; ``state`` holds its connections."""

    address: tuple[str, int]
    state: ServerState
    peers: Peers

    def is_quiet(self) -> bool:
        return not self.state.connections

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)

    async def ask(self, *parts: bytes) -> Answer:
        """Send some bytes and read until the server ends the connection."""
        reader, writer = await self.open()
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            async with asyncio.timeout(10):
                return parse(await reader.read())
        finally:
            writer.close()


async def application(scope, receive, send) -> None:
    """Read the body at `/`; refuse at once at `/refuse`; answer much at `/large`; else wait.

    `/overloaded` is refused, too, with a pause of 0.2 s if the query is "pause", and of 30 s if it
    is a tenant's name.
    """
    path, head = scope["path"], RequestHead.read(scope)
    status, answer = 200, path.encode()
    if path == "/wait":
        await Connection.of(scope).while_it_lasts(asyncio.Event().wait())
    elif path == "/large":
        answer = LARGE_ANSWER
    elif path == "/refuse":
        status = 401
    elif path == "/overloaded":
        query = scope["query_string"]
        Connection.of(scope).note_tenant(query.decode())
        Connection.of(scope).drop_body({b"": 0.0, b"pause": 0.2}.get(query, 30.0))
        status = 429
    elif path == "/livez":
        answer = b"alive"
    else:
        try:
            body = await read_body(receive, head, 1_000_000, 10.0, has_arrived=False)
        except ClientLeft:
            return
        answer = b"%d" % len(body)
    headers = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


Start = Callable[..., Awaitable[Edge]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    servers: list[asyncio.Server] = []
    edges: list[Edge] = []

    async def begin(limit: int = 100, peer_limit: int = 100, keep_alive_s: int = 60) -> Edge:
        config = Config(
            application,
            http="httptools",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=keep_alive_s,
        )
        edge = Edge(("", 0), ServerState(), Peers(limit, peer_limit))
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Connection(config, edge.state, edge.peers, bounds=BOUNDS), "127.0.0.1", 0
        )
        servers.append(server)
        edges.append(edge)
        edge.address = server.sockets[0].getsockname()
        return edge

    yield begin
    for edge in edges:
        for connection in [*edge.state.connections]:
            connection.transport.abort()
        await soon(edge.is_quiet)
    for server in servers:
        server.close()
        await server.wait_closed()


HEADS = {
    "a long request line": b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n",
    "a request line without an end": b"GET /" + b"a" * 5000,
    "a long field": b"GET / HTTP/1.1\r\nA: " + b"a" * 5000 + b"\r\n\r\n",
    "a field without an end": b"GET / HTTP/1.1\r\nA: " + b"a" * 5000,
    "a field's name without an end": b"GET / HTTP/1.1\r\n" + b"a" * 5000,
    "many fields": b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 21 + b"\r\n",
    "many fields without an end": b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1000,
    "many empty lines": b"\r\n" * 5000,
}
ENDLESS = {
    **HEADS,
    "a long trailer": CHUNKED + b"0\r\nA: " + b"a" * 6000 + b"\r\n\r\n",
    "a trailer without an end": CHUNKED + b"0\r\nA: " + b"a" * 6000,
    "an extension of a chunk without an end": CHUNKED + b"1;" + b"a" * 6000,
}
"""Those in a body are noticed with the next data only: one read is small enough for memory."""


@pytest.mark.parametrize("name", HEADS)
async def test_a_head_beyond_the_bounds_is_431_and_ends_the_connection(start: Start, name: str):
    edge = await start()
    answer = await edge.ask(HEADS[name])
    assert (answer.status, answer.code) == (431, "head_too_large")
    assert b"\r\ncontent-type: application/problem+json" in answer.headers
    assert b"\r\nconnection: close" in answer.headers
    assert re.search(rb"\r\nx-request-id: [\w-]+", answer.headers)


@pytest.mark.parametrize("name", ENDLESS)
async def test_a_head_beyond_the_bounds_is_refused_in_small_parts_too(start: Start, name: str):
    edge = await start()
    reader, writer = await edge.open()
    for at in range(0, len(ENDLESS[name]), 700):
        writer.write(ENDLESS[name][at : at + 700])
        await asyncio.sleep(0.005)  # so that the server reads each part for itself
    async with asyncio.timeout(10):
        assert parse(await reader.read()).status == 431
    writer.close()


async def test_a_head_within_the_bounds_is_answered(start: Start):
    edge = await start()
    fields = b"A: " + b"a" * 3900 + b"\r\n" + b"A: b\r\n" * 17
    answer = await edge.ask(b"GET / HTTP/1.1\r\nConnection: close\r\n" + fields + b"\r\n")
    assert answer.status == 200


@pytest.mark.parametrize("data", [b"GET", b"GET / HTTP/1.1\r\nA: b", b"GET / HTTP/1.1\r\nA: b\r\n"])
async def test_a_head_that_does_not_end_is_408(start: Start, data: bytes):
    edge = await start()
    answer = await edge.ask(data)
    assert (answer.status, answer.code) == (408, "request_timeout")


async def test_a_head_that_trickles_has_one_deadline_for_all_of_it(start: Start):
    edge = await start()
    reader, writer = await edge.open()
    began = asyncio.get_running_loop().time()
    writer.write(b"GET / HTTP/1.1\r\n")
    while not reader.at_eof() and asyncio.get_running_loop().time() < began + 5:
        writer.write(b"A: b\r\n")
        try:
            async with asyncio.timeout(0.05):
                assert parse(await reader.read()).status == 408
        except TimeoutError:
            pass
    assert asyncio.get_running_loop().time() - began < 2
    writer.close()


@pytest.mark.parametrize("first", [b"", REQUEST])
async def test_empty_lines_do_not_keep_a_connection(start: Start, first: bytes):
    edge = await start()
    _, writer = await edge.open()
    writer.write(first)
    await soon(lambda: bool(edge.state.connections))
    began = asyncio.get_running_loop().time()
    while edge.state.connections:
        writer.write(b"\r\n")
        await asyncio.sleep(0.02)
        assert asyncio.get_running_loop().time() - began < 5
    writer.close()


async def test_a_connection_that_says_nothing_is_closed_without_an_answer(start: Start):
    edge = await start()
    reader, writer = await edge.open()
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_a_later_head_has_the_same_time(start: Start):
    edge = await start()
    reader, writer = await edge.open()
    writer.write(REQUEST)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await reader.readexactly(1)
    writer.write(b"GET / HT")
    async with asyncio.timeout(5):
        assert parse(await reader.read()).status == 408
    writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA\x00: b\r\n\r\n",
        CHUNKED + b"nothex\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_bytes_that_are_no_request_are_a_problem_too(start: Start, data: bytes):
    edge = await start()
    answer = await edge.ask(data)
    assert (answer.status, answer.code) == (400, "malformed_request")
    assert b"\r\nconnection: close" in answer.headers


async def test_an_answer_before_the_body_has_arrived_ends_the_connection(start: Start):
    edge = await start()
    answer = await edge.ask(POST.replace(b"/ ", b"/refuse ") + b"Content-Length: 9\r\n\r\nab")
    assert answer.status == 401
    assert b"\r\nconnection: close" in answer.headers
    await soon(lambda: not edge.state.connections)


async def test_an_answer_before_the_body_is_read_by_a_client_that_sends_on(start: Start):
    edge = await start()
    head = POST.replace(b"/ ", b"/refuse ") + b"Content-Length: 5000000\r\n\r\n"
    assert (await edge.ask(head, *[b"x" * 100_000] * 50)).status == 401


async def test_a_client_that_sends_on_for_ever_is_cut_off(start: Start):
    edge = await start()
    _, writer = await edge.open()
    writer.write(CHUNKED.replace(b"/ ", b"/refuse "))
    await soon(lambda: bool(edge.state.connections))
    began = asyncio.get_running_loop().time()
    while edge.state.connections:
        writer.write(b"1\r\na\r\n")
        await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - began < 5
    writer.close()
    await soon(lambda: not edge.state.connections)


async def test_a_request_whose_body_has_arrived_keeps_the_connection(start: Start):
    edge = await start()
    reader, writer = await edge.open()
    for _ in range(3):
        writer.write(POST + b"Content-Length: 2\r\n\r\nab")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"connection: close" not in head
        assert await reader.readexactly(1) == b"2"
    writer.close()


async def test_pipelined_requests_are_answered_in_order_up_to_a_number(start: Start):
    edge = await start()
    requests = [b"GET /refuse?%d HTTP/1.1\r\n\r\n" % at for at in range(4)]
    reader, writer = await edge.open()
    writer.write(b"".join(requests))
    for _ in range(4):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401")
        await reader.readexactly(7)
    writer.close()


async def test_too_many_pipelined_requests_end_the_connection_after_the_first_answer(start: Start):
    edge = await start()
    answer = await edge.ask(b"GET /refuse HTTP/1.1\r\n\r\n" * 10_000)
    assert answer.status == 401
    assert b"\r\nconnection: close" in answer.headers
    assert answer.body == b"/refuse"


async def test_a_client_that_takes_no_answer_is_cut_off(start: Start):
    edge = await start()
    with socket.create_connection(edge.address) as client:
        client.sendall(REQUEST.replace(b"/ ", b"/large "))
        await soon(lambda: bool(edge.state.connections))
        await soon(lambda: not edge.state.connections)


async def test_an_offer_of_another_protocol_is_ignored(start: Start):
    edge = await start()
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    reader, writer = await edge.open()
    for body in (b"", b"Content-Length: 2\r\n\r\nab"):
        writer.write(POST + offer + (body or b"\r\n"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await reader.readexactly(1)
    writer.close()


async def test_idle_connections_make_room_for_a_new_one_of_the_same_peer(start: Start):
    edge = await start(peer_limit=5)
    opened = [await edge.open() for _ in range(12)]
    await soon(lambda: edge.peers.count == 5)
    reader, writer = opened[-1]
    writer.write(REQUEST)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    for _, writer in opened:
        writer.close()


async def test_a_connection_that_was_used_outlasts_one_that_never_was(start: Start):
    edge = await start(peer_limit=2)
    used, _ = await edge.open(), None
    used[1].write(REQUEST)
    await used[0].readuntil(b"\r\n\r\n")
    await used[0].readexactly(1)
    silent, other = await edge.open(), await edge.open()
    async with asyncio.timeout(5):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await silent[0].readexactly(1)
    used[1].write(REQUEST)
    assert (await used[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    for _, writer in (used, silent, other):
        writer.close()


async def test_connections_in_use_are_never_closed_for_another_one(start: Start):
    edge = await start(peer_limit=2)
    busy = [await edge.open() for _ in range(2)]
    for _, writer in busy:
        writer.write(REQUEST.replace(b"/ ", b"/wait "))
    await soon(lambda: len(edge.state.tasks) == 2)
    answer = await edge.ask(REQUEST)
    assert (answer.status, answer.code) == (429, "too_many_connections")
    assert b"\r\nretry-after: 1" in answer.headers
    for _, writer in busy:
        writer.close()
    await soon(lambda: not edge.peers.count)


async def test_one_peer_never_gets_all_connections(start: Start):
    edge = await start(limit=8, peer_limit=100)
    opened = [await edge.open() for _ in range(12)]
    await soon(lambda: edge.peers.count == 6)
    for _, writer in opened:
        writer.close()


@pytest.mark.parametrize("data", [b"", b"GET / HT", POST + b"Content-Length: 9\r\n\r\nab", REQUEST])
async def test_a_connection_that_ends_is_forgotten(start: Start, data: bytes):
    edge = await start()
    _, writer = await edge.open()
    writer.write(data)
    await soon(lambda: edge.peers.count == 1)
    writer.close()
    await soon(lambda: edge.peers.count == 0)


async def test_the_fields_of_a_trailer_are_not_taken_for_those_of_the_head(start: Start):
    edge = await start()
    body = b"2\r\nab\r\n0\r\nAuthorization: Bearer x\r\n\r\n"
    answer = await edge.ask(CHUNKED.replace(b"Host", b"Connection: close\r\nHost") + body)
    assert (answer.status, answer.body) == (200, b"2")


OVERLOADED = POST.replace(b"/ ", b"/overloaded ") + b"Content-Length: 6\r\n\r\n"


async def refused(reader: asyncio.StreamReader) -> bytes:
    """Read an answer of `/overloaded` and return its head."""
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(len("/overloaded"))
    assert head.startswith(b"HTTP/1.1 429")
    return head.lower()


async def test_a_refusal_for_overload_comes_before_the_body_and_keeps_the_connection(start: Start):
    edge = await start()
    reader, writer = await edge.open()
    for _ in range(3):
        writer.write(OVERLOADED)
        async with asyncio.timeout(5):
            assert b"connection: close" not in await refused(reader)
        writer.write(b"ab")
        await writer.drain()
        writer.write(b"cdef" + POST + b"Content-Length: 2\r\n\r\nab")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(1) == b"2"
    writer.close()


async def test_the_body_of_a_refused_call_must_come_soon(start: Start):
    edge = await start()
    reader, writer = await edge.open()
    writer.write(OVERLOADED + b"ab")
    await refused(reader)
    async with asyncio.timeout(5):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readexactly(1)
    writer.close()


async def test_a_connection_is_idle_again_after_the_body_of_a_refused_call(start: Start):
    edge = await start(keep_alive_s=1)
    reader, writer = await edge.open()
    writer.write(OVERLOADED)
    await refused(reader)
    writer.write(b"abcdef")
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    "more", [b"Transfer-Encoding: chunked\r\n", b"Content-Length: 90000000\r\n"]
)
async def test_a_refused_body_of_unknown_or_large_size_ends_the_connection(
    start: Start, more: bytes
):
    edge = await start()
    answer = await edge.ask(OVERLOADED.replace(b"Content-Length: 6\r\n", more))
    assert answer.status == 429
    assert b"connection: close" in answer.headers


async def test_a_client_that_waits_to_be_asked_for_its_body_is_told_that_nobody_will(start: Start):
    edge = await start()
    expecting = OVERLOADED.replace(b"Host", b"Expect: 100-continue\r\nHost")
    answer = await edge.ask(expecting)
    assert answer.status == 429
    assert b"connection: close" in answer.headers


async def test_after_a_pause_the_next_call_is_read(start: Start):
    edge = await start()
    reader, writer = await edge.open()
    loop = asyncio.get_running_loop()
    for _ in range(2):
        began = loop.time()
        writer.write(OVERLOADED.replace(b"overloaded", b"overloaded?pause") + b"abcdef")
        await refused(reader)
    assert loop.time() - began > 0.1
    writer.close()
    await soon(lambda: not edge.state.connections)


async def test_a_connection_of_several_tenants_is_never_left_unread(start: Start):
    edge = await start()
    reader, writer = await edge.open()
    call = OVERLOADED + b"abcdef"
    writer.write(call.replace(b"overloaded", b"overloaded?pause"))
    async with asyncio.timeout(10):
        await refused(reader)
        for tenant in (b"acme", b"rival", b"acme"):
            writer.write(call.replace(b"overloaded", b"overloaded?" + tenant))
            await refused(reader)
    writer.close()


async def test_a_proxys_connection_is_never_left_unread(start: Start):
    edge = await start()
    reader, writer = await edge.open()
    call = OVERLOADED.replace(b"overloaded", b"overloaded?acme") + b"abcdef"
    async with asyncio.timeout(10):
        for _ in range(2):
            writer.write(call.replace(b"\r\n", b"\r\nX-Forwarded-For: 192.0.2.1\r\n", 1))
            await refused(reader)
    writer.close()


async def test_pipelined_calls_after_a_pause_are_answered(start: Start):
    edge = await start()
    reader, writer = await edge.open()
    writer.write((OVERLOADED.replace(b"overloaded", b"overloaded?pause") + b"abcdef") * 3)
    async with asyncio.timeout(10):
        for _ in range(3):
            await refused(reader)
    writer.close()


async def test_health_is_answered_when_there_is_no_room_for_anything_else(start: Start):
    edge = await start(peer_limit=2)
    busy = [await edge.open() for _ in range(2)]
    for _, writer in busy:
        writer.write(REQUEST.replace(b"/ ", b"/wait "))
    await soon(lambda: len(edge.state.tasks) == 2)
    reader, writer = await edge.open()
    for _ in range(2):
        writer.write(REQUEST.replace(b"/ ", b"/livez?x "))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(5) == b"alive"
    writer.write(REQUEST)
    assert parse(await reader.read()).code == "too_many_connections"
    writer.close()
    idle = [await edge.open() for _ in range(3 * SPARE)]
    health = await edge.ask(b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert health.body == b"alive"
    for _, writer in (*busy, *idle):
        writer.close()
    await soon(lambda: not edge.peers.count)
