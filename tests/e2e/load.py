"""Many concurrent clients over keep-alive connections, and the outcome of every request."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Asked(Protocol):
    """What is asked: a server, or a proxy before several."""

    @property
    def port(self) -> int:
        """Its port on loopback."""

    @property
    def key(self) -> str:
        """The API key to send."""


@dataclass(frozen=True)
class Reply:
    """One answered request. ``asked`` is the number of the body that was sent."""

    asked: int
    status: int
    body: Any  # Any: a JSON document


@dataclass
class Load:
    """The replies that clients received, and the connections that ended without a reply."""

    replies: list[Reply] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    refused: int = 0

    @property
    def statuses(self) -> set[int]:
        return {reply.status for reply in self.replies}


class Clients:
    """Clients that send the given bodies to one path in rotation, until ``stop`` is called."""

    def __init__(
        self, server: Asked, path: str, bodies: Sequence[object], timeout_ms: int = 20_000
    ) -> None:
        self._port = server.port
        self._requests = [_encode(path, body, server.key, timeout_ms) for body in bodies]
        self._is_stopping = False
        self._good = 0
        self._replied = asyncio.Event()
        self.load = Load()

    async def run(self, count: int) -> None:
        """Run ``count`` clients until ``stop``; return when each has its last answer."""
        await asyncio.gather(*(self._client(number) for number in range(count)))

    async def ask_and_leave(self, count: int) -> None:
        """Send requests and close each connection without waiting for the answer."""
        for _ in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(self._requests[0])
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    def stop(self) -> None:
        """End the run; every client finishes its current request."""
        self._is_stopping = True

    async def answered(self, count: int) -> None:
        """Wait for ``count`` more answers with status 200."""
        wanted = self._good + count
        async with asyncio.timeout(60):
            while self._good < wanted:
                self._replied.clear()
                await self._replied.wait()

    async def _client(self, number: int) -> None:
        asked = number
        while not self._is_stopping:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                self.load.refused += 1
                await asyncio.sleep(0.01)
                continue
            try:
                is_kept = True
                while is_kept and not self._is_stopping:
                    asked = (asked + 1) % len(self._requests)
                    is_kept = await self._ask(reader, writer, asked)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.load.broken.append(repr(error))
            finally:
                writer.close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: int
    ) -> bool:
        """Send one request; return False if the server closes the connection after its answer."""
        writer.write(self._requests[asked])
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = int(head.split(" ", 2)[1])
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        self.load.replies.append(Reply(asked, status, body))
        self._good += status == 200
        self._replied.set()
        return "connection: close" not in head


def _encode(path: str, body: object, key: str, timeout_ms: int) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {key}\r\n"
        f"X-Request-Timeout-Ms: {timeout_ms}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
