"""Answers that are sent in one write, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from peterrec.service.http.asgi import Headers, read_body, send_json
from peterrec.service.http.asgi import RequestHead as Head
from peterrec.service.http.connection import Connection

BODY = b'{"a":1}'
Ask = Callable[[ASGIApp, bytes], Awaitable[tuple[bytes, list[int]]]]


class Counting(Connection):
    """A connection that notes the sizes of its writes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.sizes: list[int] = []
        write = transport.write

        class Noting:
            def __getattr__(noting, name: str) -> object:
                return getattr(transport, name)

            def write(noting, data: bytes) -> None:
                self.sizes.append(len(data))
                write(data)

        super().connection_made(Noting())  # type: ignore[arg-type]  # enough of a transport


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    """Send bytes to an application; return all that comes back, and the sizes of its writes."""
    servers: list[asyncio.Server] = []

    async def send(app: ASGIApp, request: bytes) -> tuple[bytes, list[int]]:
        config, state = (
            Config(app, http="httptools", lifespan="off", log_config=None),
            ServerState(),
        )
        made: list[Counting] = []

        def connect() -> Counting:
            made.append(Counting(config, state))
            return made[-1]

        loop = asyncio.get_running_loop()
        servers.append(await loop.create_server(connect, "127.0.0.1", 0))
        reader, writer = await asyncio.open_connection(*servers[-1].sockets[0].getsockname())
        writer.write(request)
        async with asyncio.timeout(10):
            answer = await reader.read() if b"close" in request else await reader.read(1 << 20)
        writer.close()
        return answer, made[0].sizes

    yield send
    for server in servers:
        server.close()


def answering(*headers: tuple[bytes, bytes]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        own: Headers = [(b"content-type", b"application/json"), *headers]
        await read_body(receive, Head("1"), 100, 10.0, has_arrived=True)
        await send_json(send, 200, BODY, own)

    return app


def request(method: str = "POST", *fields: str) -> bytes:
    lines = [f"{method} / HTTP/1.1", "Host: here", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_a_whole_answer_is_one_write(ask: Ask):
    answer, sizes = await ask(answering(), request())
    assert answer == (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n" + BODY
    )
    assert sizes == [len(answer)]


async def test_a_client_that_asks_for_the_end_gets_it_after_the_answer(ask: Ask):
    answer, _ = await ask(answering(), request("POST", "Connection: close"))
    assert answer.endswith(b"connection: close\r\n\r\n" + BODY)


async def test_an_answer_that_says_close_ends_the_connection(ask: Ask):
    answer, _ = await ask(answering((b"connection", b"close")), request("POST", "X: close"))
    assert answer.count(b"connection: close") == 1
    assert answer.endswith(BODY)


async def test_the_answer_to_head_has_no_body(ask: Ask):
    answer, _ = await ask(answering(), request("HEAD", "Connection: close"))
    assert answer.endswith(b"\r\n\r\n")
    assert b"content-length: 7" in answer


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: x", b"a\nb", b"a\rb"])
async def test_a_value_with_the_end_of_a_line_is_never_sent(ask: Ask, value: bytes):
    answer, _ = await ask(answering((b"x-own", value)), request("POST", "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"set-cookie" not in answer
