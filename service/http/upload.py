"""Uploads: streamed to a temporary file with a size limit, off the event loop."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

from peterrec.model.disk import refusals
from peterrec.model.scratch import is_alive
from peterrec.service.errors import BodyTooLarge, MalformedRequest

WRITE_BYTES = 1 << 20
"""Bytes that are collected before a thread writes them: one write per megabyte."""


@asynccontextmanager
async def uploaded_file(
    chunks: AsyncIterator[bytes], folder: Path, limit_bytes: int
) -> AsyncIterator[Path]:
    """Write an upload to a file that exists within the context; raise BodyTooLarge past the limit.

    An empty upload is a MalformedRequest.
    """
    path = new_upload(folder)
    try:
        size = await _write(chunks, path, limit_bytes)
        if not size:
            raise MalformedRequest(
                "the body is empty.", hint="Send the bundle's bytes as the body."
            )
        yield path
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)


def new_upload(folder: Path) -> Path:
    """Return a path for an upload, by whose name one knows the worker."""
    return folder / f"{os.getpid()}-{uuid4().hex}.upload"


def remove_abandoned_uploads(folder: Path) -> None:
    """Remove the uploads of workers that were killed, and the folders of what they fetched."""
    for path in folder.glob("*.upload"):
        with suppress(OSError, ValueError):
            if is_alive(int(path.name.split("-")[0])):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


async def _write(chunks: AsyncIterator[bytes], path: Path, limit_bytes: int) -> int:
    """Write the chunks and return their size. Each call of a thread costs more than the writing."""
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
    with refusals(path, doing="written", wanted_bytes=len(data)), path.open("ab") as file:
        file.write(data)
