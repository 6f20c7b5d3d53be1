"""A server that stops answers what was sent to it in time, even if it was held up meanwhile."""

import asyncio
import signal
import socket
import time
from collections.abc import Callable

import pytest
import uvloop
from uvicorn.config import Config

from peterrec.service.http.server import LAST_REQUESTS_S, DrainingServer
from tests.waiting import soon

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


async def app(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body"})


async def draining(meanwhile: Callable[[socket.socket], None]) -> bytes:
    """What a client reads whose connection is open when the drain begins."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    config = Config(app, http="httptools", lifespan="off", log_config=None)
    server = DrainingServer(config, listener, lambda: None, delay_s=0)
    serving = asyncio.create_task(server.serve())
    await soon(lambda: server.started)
    with socket.create_connection(address, timeout=10) as client:
        await soon(lambda: bool(server.server_state.connections))
        server.handle_exit(signal.SIGTERM, None)
        await soon(lambda: listener.fileno() == -1)
        meanwhile(client)
        await serving
        return client.recv(1000)


@pytest.mark.parametrize("held_up_s", [0, LAST_REQUESTS_S + 0.1])
def test_a_last_request_is_answered_even_if_the_server_was_held_up(held_up_s):
    def ask_and_hold_up(client: socket.socket) -> None:
        client.sendall(REQUEST)
        time.sleep(held_up_s)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(draining(ask_and_hold_up)).startswith(b"HTTP/1.1 204")


def test_a_connection_that_asks_nothing_is_closed():
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        began = time.monotonic()
        assert runner.run(draining(lambda client: None)) == b""
    assert time.monotonic() - began >= LAST_REQUESTS_S
