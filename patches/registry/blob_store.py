"""Bundles' bytes in the registry: stored, fetched, collected when no version names them."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import BlobCorrupt, BlobMissing, RegistryUnavailable
from peterrec.patches.identity import Digest, digest_of
from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.blob_pieces import (
    BlobLocation,
    lengths_of,
    read_first_pieces,
    read_pieces,
    write_pieces,
)
from peterrec.patches.registry.decode import text_of
from peterrec.patches.registry.records import Collected
from peterrec.patches.registry.redis_store import Store
from peterrec.patches.registry.scripts import (
    BEGIN_UPLOAD,
    FINISH_UPLOAD,
    LIST_UNUSED,
    RELEASE_UNUSED,
)

UPLOAD_TIMEOUT_S = 3600
BLOB_GRACE_S = 3600
"""An unreferenced blob stays this long: its version may be about to be registered."""

SHORT_BYTES = 256 << 10
"""So much is hashed sooner than a thread is woken for it."""

Blobs = dict[Digest, bytes | BlobMissing | BlobCorrupt]
"""Bundles' bytes, or what is wrong with them."""


class BlobStore:
    """Blobs by digest, immutable, complete or not there at all (``blob_pieces``)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, data: bytes) -> Digest:
        """Store a bundle's bytes, all or nothing; storing them again only keeps them alive."""
        is_short = len(data) <= SHORT_BYTES
        digest = digest_of(data) if is_short else await asyncio.to_thread(digest_of, data)
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
        found = (await self.get_some([digest], max_bytes=0))[digest]
        if isinstance(found, bytes):
            return found
        raise found

    async def get_some(self, digests: Sequence[Digest], max_bytes: int) -> Blobs:
        """The first few bundles' bytes, or what is wrong with them, in a few round trips.

        They are in memory together: the first one, and what else ``max_bytes`` leaves room for.
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
        return await asyncio.to_thread(_judged, data)

    async def _first(
        self, located: Mapping[Digest, BlobLocation | None], max_bytes: int
    ) -> dict[Digest, BlobLocation | None]:
        """The first ones that have room together."""
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
        lengths = iter(await lengths_of(self._store.redis, keys))
        return {each.digest: sum(islice(lengths, each.piece_count)) for each in locations}

    async def _read(self, locations: Sequence[BlobLocation]) -> dict[Digest, bytes | None]:
        """Short blobs, of one piece, all at once; the others one after another."""
        redis, prefix = self._store.redis, self._store.prefix
        short = [location for location in locations if location.piece_count == 1]
        pieces = await read_first_pieces(redis, [location.keys(prefix)[0] for location in short])
        data = {location.digest: piece for location, piece in zip(short, pieces, strict=True)}
        for location in locations:
            if location.piece_count > 1:
                data[location.digest] = await read_pieces(redis, location.keys(prefix))
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
        keys = [key for location in locations for key in location.keys(self._store.prefix)]
        with redis_errors():
            return sum(await lengths_of(self._store.redis, keys))

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


def _judged(data: Mapping[Digest, bytes | None]) -> Blobs:
    """Blocks: hashes everything."""
    judged: Blobs = {}
    for digest, blob in data.items():
        if blob is None:
            judged[digest] = BlobMissing(digest)
        else:
            found = digest_of(blob)
            judged[digest] = blob if found == digest else BlobCorrupt(digest, found)
    return judged
