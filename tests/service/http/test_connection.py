"""A request ends when its client leaves, and only then. Over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from peterrec.service.http.asgi import ClientLeft, RequestHead, read_body
from peterrec.service.http.connection import Connection

REQUEST = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n%s"
LARGE = 1_000_000


class Served(NamedTuple):
    """A client's connection and what became of its request."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    outcome: "asyncio.Future[object]"
    has_begun: asyncio.Event


Serve = Callable[[Callable[[], Awaitable[object]]], Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve requests whose answer is the result of some work."""
    loop = asyncio.get_running_loop()
    servers: list[asyncio.Server] = []
    opened: list[Served] = []

    async def start(work: Callable[[], Awaitable[object]]) -> Served:
        outcome, has_begun = loop.create_future(), asyncio.Event()

        async def app(scope, receive, send) -> None:
            connection = Connection.of(scope)
            await read_body(
                receive, RequestHead("1"), LARGE, 10.0, has_arrived=connection.has_whole_body
            )
            has_begun.set()
            try:
                outcome.set_result(await connection.while_it_lasts(work()))
            except (Exception, asyncio.CancelledError) as error:
                outcome.set_result(error)
            await send({"type": "http.response.start", "status": 204})
            await send({"type": "http.response.body"})

        config = Config(app, http="httptools", lifespan="off", log_config=None)
        state = ServerState()
        server = await loop.create_server(lambda: Connection(config, state), "127.0.0.1", 0)
        servers.append(server)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        opened.append(Served(reader, writer, outcome, has_begun))
        return opened[-1]

    yield start
    for served in opened:
        served.writer.close()
    for server in servers:
        server.close()
        await server.wait_closed()


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_work_is_answered_while_the_client_is_there(serve: Serve):
    async def work() -> int:
        return 5

    served = await serve(work)
    served.writer.write(REQUEST % (2, b"{}"))
    assert await served.outcome == 5
    assert (await served.reader.readline()).startswith(b"HTTP/1.1 204")


@pytest.mark.parametrize("size", [0, 2, LARGE])
async def test_a_client_that_leaves_cancels_the_work(serve: Serve, size: int):
    served = await serve(for_ever)
    served.writer.write(REQUEST % (size, b"x" * size))
    await served.has_begun.wait()
    served.writer.close()
    async with asyncio.timeout(10):
        assert isinstance(await served.outcome, ClientLeft)


async def test_a_client_that_left_before_the_work_begins_is_noticed(serve: Serve):
    served = await serve(for_ever)
    served.writer.write(REQUEST % (2, b"{}"))
    served.writer.close()
    async with asyncio.timeout(10):
        assert isinstance(await served.outcome, ClientLeft)


async def test_work_that_fails_fails_as_itself(serve: Serve):
    async def work() -> None:
        raise ValueError("mine")

    served = await serve(work)
    served.writer.write(REQUEST % (2, b"{}"))
    assert isinstance(await served.outcome, ValueError)


async def test_a_cancellation_from_elsewhere_is_not_mistaken_for_a_client_that_left(serve: Serve):
    tasks: list[asyncio.Task[None] | None] = []

    async def work() -> None:
        tasks.append(asyncio.current_task())
        await for_ever()

    served = await serve(work)
    served.writer.write(REQUEST % (2, b"{}"))
    await served.has_begun.wait()
    assert tasks[0] is not None
    tasks[0].cancel()
    assert isinstance(await served.outcome, asyncio.CancelledError)


async def test_a_body_in_parts_has_not_arrived_at_once(serve: Serve):
    async def work() -> str:
        return "whole"

    served = await serve(work)
    served.writer.write((REQUEST % (2, b"{}"))[:-1])
    await served.writer.drain()
    await asyncio.sleep(0.05)
    assert not served.has_begun.is_set()
    served.writer.write(b"}")
    assert await served.outcome == "whole"
