"""Bundles' bytes in the registry: stored, fetched, collected when no version names them."""

import asyncio
from contextlib import suppress

from model.errors import PeterRecError
from patches.blobs import BlobLocation, read_pieces, write_pieces
from patches.errors import BlobCorrupt, BlobMissing, RegistryUnavailable
from patches.identity import Digest, digest_of
from patches.records import Collected
from patches.redis_client import redis_errors
from patches.scripts.blobs import BEGIN_UPLOAD, FINISH_UPLOAD, LIST_UNUSED, RELEASE_UNUSED
from patches.store import Store
from patches.stored import text_of

UPLOAD_TIMEOUT_S = 3600
BLOB_GRACE_S = 3600
"""An unreferenced blob stays this long: its version may be about to be registered."""


class BlobStore:
    """Blobs by digest, immutable, complete or not there at all (``patches.blobs``)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, data: bytes) -> Digest:
        """Store a bundle's bytes, all or nothing; storing them again only keeps them alive."""
        digest = await asyncio.to_thread(digest_of, data)
        location = BlobLocation.fresh(digest, len(data))
        found = await self._store.change(
            BEGIN_UPLOAD,
            digest=digest,
            location=str(location),
            expires_ms=UPLOAD_TIMEOUT_S * 1000,
        )
        if not found.is_present:
            await self._upload(location, data)
        return digest

    async def get(self, digest: Digest) -> bytes:
        """A bundle's bytes, checked against their digest; BlobMissing or BlobCorrupt otherwise."""
        with redis_errors():
            text = await self._store.redis.hget(self._store.key("blobs"), digest)
            location = BlobLocation.parse(text_of(text)) if text else None
            keys = location.keys(self._store.prefix) if location else []
            data = await read_pieces(self._store.redis, keys) if keys else None
        if data is None:
            raise BlobMissing(digest)
        found = await asyncio.to_thread(digest_of, data)
        if found != digest:
            raise BlobCorrupt(digest, found)
        return data

    async def has(self, digest: Digest) -> bool:
        """True if the bundle's bytes are stored completely."""
        with redis_errors():
            return bool(await self._store.redis.hexists(self._store.key("blobs"), digest))

    async def totals(self) -> Collected:
        """How many blobs there are, and their bytes."""
        with redis_errors():
            stored = await self._store.redis.hgetall(self._store.key("blobs"))
        locations = [BlobLocation.parse(text_of(text)) for text in stored.values()]
        return Collected(len(locations), await self._size_of(locations))

    async def collect(self, grace_s: float, *, dry_run: bool) -> Collected:
        """Free what no version has named for ``grace_s``, and uploads that were abandoned.

        With ``dry_run`` only count it.
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

    async def _size_of(self, locations: list[BlobLocation]) -> int:
        redis, prefix = self._store.redis, self._store.prefix
        with redis_errors():
            keys = [key for location in locations for key in location.keys(prefix)]
            return sum([await redis.strlen(key) for key in keys])

    async def _upload(self, location: BlobLocation, data: bytes) -> None:
        try:
            with redis_errors():
                await write_pieces(self._store.redis, location.keys(self._store.prefix), data)
        except PeterRecError:
            with suppress(PeterRecError):  # it would be freed in an hour anyway
                await self._discard(location)
            raise
        outcome = await self._store.change(
            FINISH_UPLOAD, digest=location.digest, location=str(location)
        )
        if outcome.error:
            raise RegistryUnavailable(
                f"storing the bundle took longer than {UPLOAD_TIMEOUT_S} s.", hint="Push it again."
            )

    async def _discard(self, location: BlobLocation) -> None:
        with redis_errors():
            await self._store.redis.unlink(*location.keys(self._store.prefix))
            await self._store.redis.zrem(self._store.key("garbage"), str(location))
