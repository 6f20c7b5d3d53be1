"""Bundles' bytes in Redis by digest: stored, fetched, and freed when no version names them.

A blob is stored in pieces under a location that is used only once; the index of complete blobs
maps the digest to the location. So an upload that was interrupted, or that another upload overtook,
never mixes with another one, and no newer upload writes to a location that is being freed.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Self
from uuid import uuid4

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import BlobCorrupt, BlobMissing, RegistryUnavailable
from peterrec.patches.identity import Blob, Digest
from peterrec.patches.redis.client import Client, redis_errors
from peterrec.patches.registry.records import Collected
from peterrec.patches.registry.redis_store import Store
from peterrec.patches.registry.scripts import (
    BEGIN_UPLOAD,
    FINISH_UPLOAD,
    LIST_UNUSED,
    RELEASE_UNUSED,
)
from peterrec.patches.registry.serialization import text_of

PIECE_BYTES = 8 << 20
"""Size of a piece. Redis limits a value to 512 MB, and a long one blocks it for all clients."""

UPLOAD_TIMEOUT_S = 3600
"""An upload that is not complete after this time may be freed."""

BLOB_GRACE_S = 3600
"""An unreferenced blob stays this long, because its version may be about to be registered."""

Blobs = dict[Digest, Blob | BlobMissing | BlobCorrupt]
"""Bundles by digest, with the error in place of each one that is missing or damaged."""


@dataclass(frozen=True, slots=True)
class BlobLocation:
    """Where the pieces of one upload are stored."""

    digest: Digest
    generation: str
    piece_count: int

    @classmethod
    def fresh(cls, digest: Digest, size_bytes: int) -> Self:
        """Make a location that was never used before."""
        return cls(digest, uuid4().hex, max(1, -(-size_bytes // PIECE_BYTES)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a location's text in the index."""
        digest, generation, piece_count = text.split(":")
        return cls(Digest(digest), generation, int(piece_count))

    def __str__(self) -> str:
        return f"{self.digest}:{self.generation}:{self.piece_count}"

    def keys(self, prefix: str) -> list[str]:
        """Return the pieces' keys. Each blob has one hash slot, so blobs spread over a cluster."""
        stem = f"{prefix}:blob:{{{self.digest}.{self.generation}}}"
        return [f"{stem}:{index}" for index in range(self.piece_count)]


class BlobReader:
    """Reads parts of one stored blob, such as its header, so that nobody has to fetch all of it."""

    def __init__(self, redis: Client, keys: Sequence[str], lengths: Sequence[int]) -> None:
        self._redis = redis
        self._keys = keys
        self.size_bytes = sum(lengths)

    async def read(self, begin: int, end: int) -> bytes:
        """Return the bytes from ``begin`` to ``end``, fewer if the blob is shorter."""
        parts = []
        for index in range(begin // PIECE_BYTES, -(-min(end, self.size_bytes) // PIECE_BYTES)):
            offset = index * PIECE_BYTES
            first, last = max(0, begin - offset), min(PIECE_BYTES, end - offset) - 1
            with redis_errors():
                part = await self._redis.getrange(self._keys[index], first, last)
            assert isinstance(part, bytes), "the client must not decode answers"
            parts.append(part)
        return b"".join(parts)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the whole blob, a piece at a time."""
        for begin in range(0, self.size_bytes, PIECE_BYTES):
            yield await self.read(begin, min(begin + PIECE_BYTES, self.size_bytes))


class BlobStore:
    """The stored blobs. They are immutable, and each is stored completely or not at all."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, blob: Blob) -> Digest:
        """Store a bundle's bytes, all or nothing.

        Storing them again keeps them alive, and mends what was damaged or lost of them in Redis.
        """
        location = BlobLocation.fresh(blob.digest, len(blob.data))
        found = await self._store.change(
            BEGIN_UPLOAD,
            digest=blob.digest,
            location=str(location),
            expires_ms=UPLOAD_TIMEOUT_S * 1000,
        )
        if not found.is_present:
            await self._upload(location, blob.data)
        elif not isinstance((await self.get_some([blob.digest], 0))[blob.digest], Blob):
            await self._mend(blob)
        return blob.digest

    async def open(self, digest: Digest) -> BlobReader:
        """Prepare to read parts of a blob, whose digest is not checked then; BlobMissing."""
        with redis_errors():
            text = await self._store.redis.hget(self._store.key("blobs"), digest)
            if text is None:
                raise BlobMissing(digest)
            keys = BlobLocation.parse(text_of(text)).keys(self._store.prefix)
            lengths = await _lengths_of(self._store.redis, keys)
        if 0 in lengths:
            raise BlobMissing(digest)
        return BlobReader(self._store.redis, keys, lengths)

    async def get(self, digest: Digest) -> Blob:
        """Fetch a bundle's bytes and check their digest; BlobMissing or BlobCorrupt."""
        found = (await self.get_some([digest], max_bytes=0))[digest]
        if isinstance(found, Blob):
            return found
        raise found

    async def get_some(self, digests: Sequence[Digest], max_bytes: int) -> Blobs:
        """Fetch the first few of the bundles in a few round trips; at least one.

        They are in memory together: the first one, and as many more as ``max_bytes`` has room for.
        """
        with redis_errors():
            texts = await self._store.redis.hmget(self._store.key("blobs"), list(digests))
            located = {
                digest: BlobLocation.parse(text_of(text)) if text else None
                for digest, text in zip(digests, texts, strict=True)
            }
            some = await self._first(located, max_bytes)
            found = await self._read([each for each in some.values() if each is not None])
        data = {digest: found.get(digest) for digest in some}
        return await asyncio.to_thread(_checked, data)

    async def digests(self) -> frozenset[Digest]:
        """Return the digests of the stored blobs."""
        with redis_errors():
            stored = await self._store.redis.hkeys(self._store.key("blobs"))
        return frozenset(Digest(text_of(digest)) for digest in stored)

    async def totals(self) -> Collected:
        """Count the stored blobs and their bytes."""
        with redis_errors():
            stored = await self._store.redis.hgetall(self._store.key("blobs"))
        locations = [BlobLocation.parse(text_of(text)) for text in stored.values()]
        return Collected(len(locations), await self._size_of(locations))

    async def collect(self, *, dry_run: bool, grace_s: float = BLOB_GRACE_S) -> Collected:
        """Free abandoned uploads and the blobs that no version has named for ``grace_s``.

        With ``dry_run`` they are only counted.
        """
        argument = {"grace_ms": int(grace_s * 1000)}
        if dry_run:
            found = await self._store.run(LIST_UNUSED, self._store.keys(), argument)
            locations = [BlobLocation.parse(text_of(text)) for text in found]
            return Collected(len(locations), await self._size_of(locations))
        blobs = size_bytes = 0
        while released := await self._store.run(RELEASE_UNUSED, self._store.keys(), argument):
            for text in released:
                location = BlobLocation.parse(text_of(text))
                size_bytes += await self._size_of([location])
                await self._discard(location)
            blobs += len(released)
        return Collected(blobs, size_bytes)

    async def _first(
        self, located: Mapping[Digest, BlobLocation | None], max_bytes: int
    ) -> dict[Digest, BlobLocation | None]:
        """Select the first blobs that fit into ``max_bytes`` together."""
        sizes = await self._sizes([each for each in located.values() if each is not None])
        some: dict[Digest, BlobLocation | None] = {}
        for digest, location in located.items():
            max_bytes -= 0 if location is None else sizes[digest]
            if some and max_bytes < 0:
                break
            some[digest] = location
        return some

    async def _sizes(self, locations: Sequence[BlobLocation]) -> dict[Digest, int]:
        if len(locations) == 1:
            return {locations[0].digest: 0}  # the first one is read whatever its size
        keys = [key for each in locations for key in each.keys(self._store.prefix)]
        lengths = iter(await _lengths_of(self._store.redis, keys))
        return {each.digest: sum(islice(lengths, each.piece_count)) for each in locations}

    async def _read(self, locations: Sequence[BlobLocation]) -> dict[Digest, bytes | None]:
        """Read blobs of one piece in one round trip, and the others one after another."""
        redis, prefix = self._store.redis, self._store.prefix
        short = [location for location in locations if location.piece_count == 1]
        pieces = await _read_first_pieces(redis, [location.keys(prefix)[0] for location in short])
        data = {location.digest: piece for location, piece in zip(short, pieces, strict=True)}
        for location in locations:
            if location.piece_count > 1:
                data[location.digest] = await _read_pieces(redis, location.keys(prefix))
        return data

    async def _size_of(self, locations: list[BlobLocation]) -> int:
        keys = [key for location in locations for key in location.keys(self._store.prefix)]
        with redis_errors():
            return sum(await _lengths_of(self._store.redis, keys))

    async def _upload(self, location: BlobLocation, data: bytes) -> None:
        try:
            with redis_errors():
                await _write_pieces(self._store.redis, location.keys(self._store.prefix), data)
        except PeterRecError:
            with suppress(PeterRecError):  # otherwise it is freed after UPLOAD_TIMEOUT_S
                await self._discard(location)
            raise
        outcome = await self._store.change(
            FINISH_UPLOAD, digest=location.digest, location=str(location)
        )
        if outcome.error:
            raise RegistryUnavailable(
                f"storing the bundle took longer than {UPLOAD_TIMEOUT_S} s.", hint="Push it again."
            )

    async def _mend(self, blob: Blob) -> None:
        """Write a blob's bytes to where they are expected: the digest says which these are."""
        with redis_errors():
            text = await self._store.redis.hget(self._store.key("blobs"), blob.digest)
            if text is None:
                raise BlobMissing(blob.digest)
            location = BlobLocation.parse(text_of(text))
            await _write_pieces(self._store.redis, location.keys(self._store.prefix), blob.data)

    async def _discard(self, location: BlobLocation) -> None:
        with redis_errors():
            await self._store.redis.unlink(*location.keys(self._store.prefix))
            await self._store.redis.zrem(self._store.key("garbage"), str(location))


def _checked(data: Mapping[Digest, bytes | None]) -> Blobs:
    """Hash what was read and compare the digests; blocks."""
    checked: Blobs = {}
    for digest, found in data.items():
        if found is None:
            checked[digest] = BlobMissing(digest)
        else:
            blob = Blob(found)
            is_right = blob.digest == digest
            checked[digest] = blob if is_right else BlobCorrupt(digest, blob.digest)
    return checked


async def _write_pieces(redis: Client, keys: Sequence[str], data: bytes) -> None:
    """Write the pieces one after another."""
    view = memoryview(data)
    for index, key in enumerate(keys):
        await redis.set(key, view[index * PIECE_BYTES : (index + 1) * PIECE_BYTES])


async def _read_pieces(redis: Client, keys: Sequence[str]) -> bytes | None:
    """Read the pieces one after another and join them; None if one is missing."""
    pieces = []
    for key in keys:
        piece = await redis.get(key)
        if not isinstance(piece, bytes):
            return None
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else await asyncio.to_thread(b"".join, pieces)


async def _read_first_pieces(redis: Client, keys: Sequence[str]) -> list[bytes | None]:
    """Read the single pieces of several blobs in one round trip; None for a missing one."""
    if not keys:
        return []
    async with redis.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.get(key)
        return [piece if isinstance(piece, bytes) else None for piece in await pipeline.execute()]


async def _lengths_of(redis: Client, keys: Sequence[str]) -> list[int]:
    """Return the bytes of each piece, in one round trip; 0 for a missing one."""
    if not keys:
        return []
    async with redis.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.strlen(key)
        return [int(length) for length in await pipeline.execute()]
