"""Bundles' bytes in Redis: by digest, in pieces, complete or not there at all.

A blob's pieces lie under a location of their own, used once; the index of complete blobs names
the location. So an upload that died, or one that lost a race, never mixes with another, and a
location to be freed is never one that a newer upload writes to.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from uuid import uuid4

from peterrec.patches.identity import Digest
from peterrec.patches.redis.client import Client

PIECE_BYTES = 8 << 20
"""Redis limits a value to 512 MB, and a long one blocks it for all."""


@dataclass(frozen=True, slots=True)
class BlobLocation:
    """Where one upload's pieces are."""

    digest: Digest
    generation: str
    piece_count: int

    @classmethod
    def fresh(cls, digest: Digest, size_bytes: int) -> Self:
        """A location that nobody used before."""
        return cls(digest, uuid4().hex, max(1, -(-size_bytes // PIECE_BYTES)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The location from its text in the index."""
        digest, generation, piece_count = text.split(":")
        return cls(Digest(digest), generation, int(piece_count))

    def __str__(self) -> str:
        return f"{self.digest}:{self.generation}:{self.piece_count}"

    def keys(self, prefix: str) -> list[str]:
        """The pieces' keys: one hash slot per blob, so that blobs spread over a cluster."""
        stem = f"{prefix}:blob:{{{self.digest}.{self.generation}}}"
        return [f"{stem}:{index}" for index in range(self.piece_count)]


async def write_pieces(redis: Client, keys: Sequence[str], data: bytes) -> None:
    """Write the pieces one after another."""
    view = memoryview(data)
    for index, key in enumerate(keys):
        await redis.set(key, view[index * PIECE_BYTES : (index + 1) * PIECE_BYTES])


async def read_pieces(redis: Client, keys: Sequence[str]) -> bytes | None:
    """All pieces together; None if one is gone."""
    pieces = []
    for key in keys:
        piece = await redis.get(key)
        if not isinstance(piece, bytes):
            return None
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else await asyncio.to_thread(b"".join, pieces)


async def read_first_pieces(redis: Client, keys: Sequence[str]) -> list[bytes | None]:
    """The pieces of blobs that have one each, in one round trip; None for one that is gone."""
    if not keys:
        return []
    async with redis.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.get(key)
        return [piece if isinstance(piece, bytes) else None for piece in await pipeline.execute()]


async def lengths_of(redis: Client, keys: Sequence[str]) -> list[int]:
    """Bytes of each piece, in one round trip; 0 for one that is gone."""
    if not keys:
        return []
    async with redis.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.strlen(key)
        return [int(length) for length in await pipeline.execute()]
