"""Uploads on their way: streamed to a file with a limit, off the event loop, and removed after."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from peterrec.service.errors import BodyTooLarge, MalformedRequest

WRITE_BYTES = 1 << 20
"""Collected before a write is handed to a thread."""


@asynccontextmanager
async def spooled(
    chunks: AsyncIterator[bytes], folder: Path, limit_bytes: int
) -> AsyncIterator[Path]:
    """A file with the whole upload, as long as the context lasts; BodyTooLarge past the limit."""
    path = folder / f"{uuid4().hex}.upload"
    try:
        size = await _write(chunks, path, limit_bytes)
        if not size:
            raise MalformedRequest(
                "the body is empty.", hint="Send the bundle's bytes as the body."
            )
        yield path
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)


async def _write(chunks: AsyncIterator[bytes], path: Path, limit_bytes: int) -> int:
    """A short upload is one call of a thread: each costs more than the writing."""
    size = 0
    waiting = bytearray()
    async for chunk in chunks:
        size += len(chunk)
        if size > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        waiting += chunk
        if len(waiting) >= WRITE_BYTES:
            await asyncio.to_thread(_append, path, bytes(waiting))
            waiting.clear()
    await asyncio.to_thread(_append, path, waiting)
    return size


def _append(path: Path, data: bytes | bytearray) -> None:
    with path.open("ab") as file:
        file.write(data)
