"""A connection to Redis that can lose the answer to a command that was already carried out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class LossyProxy:
    """Forwards a unix socket and drops the next ``answers_to_lose`` answers that contain a mark.

    A lost answer closes the connection, as a network failure would.
    """

    def __init__(self, upstream: Path, mark: bytes) -> None:
        self._upstream = upstream
        self._mark = mark
        self.answers_to_lose = 0
        self.answers_lost = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one client's connection until either side closes it."""
        redis_reader, redis_writer = await asyncio.open_unix_connection(self._upstream)
        upward = asyncio.create_task(_copy(reader, redis_writer))
        try:
            while answer := await redis_reader.read(1 << 16):
                if self.answers_to_lose and self._mark in answer:
                    self.answers_to_lose -= 1
                    self.answers_lost += 1
                    break
                writer.write(answer)
                await writer.drain()
        finally:
            upward.cancel()
            for end in (writer, redis_writer):
                end.close()
            await asyncio.gather(upward, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


@asynccontextmanager
async def lossy_proxy(upstream: Path, socket: Path, mark: bytes) -> AsyncIterator[LossyProxy]:
    """Run the proxy on ``socket`` until the ``with`` block ends and all clients have left."""
    proxy = LossyProxy(upstream, mark)
    server = await asyncio.start_unix_server(proxy.serve, socket)
    async with server:
        yield proxy
