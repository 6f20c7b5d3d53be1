"""Where verified bundles come from: the local cache first, then the registry."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from peterrec.model.errors import PeterRecError
from peterrec.patches.bundle.signatures import TrustedKeys
from peterrec.patches.bundle.verify import (
    BackboneIdentity,
    BundleLimits,
    VerifiedBundle,
    verify_bundle,
)
from peterrec.patches.errors import (
    BlobCorrupt,
    BlobMissing,
    BundleRejected,
    CacheUnwritable,
    RegistryUnavailable,
)
from peterrec.patches.identity import Digest
from peterrec.patches.registry.blob_store import Blobs
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.records import RegistrySnapshot
from peterrec.patches.registry.registry import Registry
from peterrec.service.device.slots import LocalBundle

log = structlog.get_logger()

Result = TypeVar("Result")

UPLOADS_KEPT = 256
"""Newest uploads that stay cached though no alias names them yet."""

BATCH_BUNDLES = 64
"""Bundles that are fetched, verified and validated together: their probes fill one forward."""

BATCH_BYTES = 64 << 20
"""Bundles beyond this go into another batch: they are in memory together."""

Found = dict[Digest, bytes]


@dataclass(frozen=True, slots=True)
class Demands:
    """What a bundle must satisfy here; with ``trusted_keys``, one of them must have signed it."""

    backbone: BackboneIdentity
    limits: BundleLimits
    trusted_keys: TrustedKeys | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified bundle, or why there is none."""

    digest: Digest
    outcome: LocalBundle | PeterRecError


class BundleSource:
    """Fetches, caches and verifies; hashing runs in threads, off the event loop."""

    def __init__(self, registry: Registry, cache: BlobCache, demands: Demands) -> None:
        self._registry = registry
        self._cache = cache
        self._demands = demands
        self._directory = cache.directory.resolve()
        self._disk = asyncio.Lock()
        self._asking: asyncio.Task[Blobs] | None = None
        self._was_given_up = False
        self._uploads: deque[Digest] = deque(maxlen=UPLOADS_KEPT)

    async def fetch_some(self, digests: Sequence[Digest]) -> list[Fetched]:
        """The first few of the bundles, at least one, each verified or refused by itself.

        Those that are cached come first. RegistryUnavailable if none is and Redis is away.
        """
        some = digests[:BATCH_BUNDLES]
        cached = await self._on_disk(lambda: self._cached(some))
        if cached:
            return await asyncio.to_thread(self._verified, cached)
        blobs = await self._ask_registry(some)
        found = {digest: blob for digest, blob in blobs.items() if isinstance(blob, bytes)}
        unkept = await self._on_disk(lambda: self._keep(found))
        failed = [Fetched(d, blob) for d, blob in blobs.items() if not isinstance(blob, bytes)]
        verified = await asyncio.to_thread(self._verified, found)
        return [*failed, *(_checked(each, unkept.get(each.digest)) for each in verified)]

    async def _ask_registry(self, digests: Sequence[Digest]) -> Blobs:
        self._asking = asyncio.create_task(self._registry.get_blobs(digests, BATCH_BYTES))
        try:
            return await self._asking
        except asyncio.CancelledError:
            if not self._was_given_up:
                raise
            raise RegistryUnavailable("Redis went away.", hint="Serving goes on.") from None
        finally:
            self._asking.cancel()
            self._asking, self._was_given_up = None, False

    def give_up(self) -> None:
        """Redis is away: whoever waits for bundles from it need not wait until a timeout."""
        if self._asking is not None:
            self._was_given_up = True
            self._asking.cancel()

    def cached_first(self, digests: Sequence[Digest]) -> list[Digest]:
        """The bundles in the order to load them: what needs no Redis first. Blocks shortly."""
        cached = self._cache.digests()
        return sorted(digests, key=lambda digest: digest not in cached)

    async def accept(self, spooled: Path) -> LocalBundle:
        """Verify an upload and keep it in the cache; BundleRejected if it does not pass."""
        bundle, data = await asyncio.to_thread(self._verified_upload, spooled)
        self._uploads.append(bundle.digest)
        await self._on_disk(lambda: self._cache.put(bundle.digest, data))
        return LocalBundle(bundle, self._local_path(bundle.digest))

    async def collect(self) -> None:
        """Drop blobs from the registry that no version names any more."""
        dropped = await self._registry.gc(dry_run=False)
        if dropped.blobs:
            log.info("blobs_collected", blobs=dropped.blobs, size_bytes=dropped.size_bytes)

    async def settle(self) -> None:
        """Wait until the disk holds what was cached; may be cancelled without harm."""
        while not await self._on_disk(self._cache.settle):
            pass

    async def remember(self, snapshot: RegistrySnapshot, in_use: Collection[str]) -> None:
        """Keep what is served, and only that, for a restart while Redis is away.

        ``in_use`` are bundles whose files are needed though the snapshot does not name them.
        """
        named = {digest for entry in snapshot.tasks.values() for digest in entry.digests}
        kept = {*named, *self._uploads, *map(Digest, in_use)}
        await self._on_disk(lambda: self._cache.save_snapshot(snapshot))
        await self._on_disk(lambda: self._cache.retain(kept))

    async def recall(self) -> RegistrySnapshot | None:
        """What was served when last heard of the registry."""
        return await self._on_disk(self._cache.load_snapshot)

    def _local_path(self, digest: Digest) -> str:
        """Where the bundle's file lies on this machine; workers read catalogs from it."""
        return str(self._directory / self._cache.path_of(digest).name)

    def _cached(self, digests: Sequence[Digest]) -> Found:
        """What the cache has of them, as far as memory allows."""
        found: Found = {}
        size = 0
        for digest in digests:
            try:
                data = self._cache.get(digest)
            except BlobMissing:
                continue
            except BlobCorrupt as error:
                log.error(error.code, reason=error.message)
                continue
            found[digest] = data
            size += len(data)
            if size >= BATCH_BYTES:
                break
        return found

    def _keep(self, found: Found) -> dict[Digest, CacheUnwritable]:
        """Write bundles to the cache; those that could not be written."""
        unkept: dict[Digest, CacheUnwritable] = {}
        for digest, data in found.items():
            try:
                self._cache.put(digest, data)
            except CacheUnwritable as error:
                log.error(error.code, reason=error.message)
                unkept[digest] = error
        return unkept

    def _verified_upload(self, spooled: Path) -> tuple[VerifiedBundle, bytes]:
        return self._verify(spooled, None), spooled.read_bytes()

    def _verified(self, found: Found) -> list[Fetched]:
        return [self._judged(digest, data) for digest, data in found.items()]

    def _judged(self, digest: Digest, data: bytes) -> Fetched:
        try:
            bundle = self._verify(data, digest)
        except BundleRejected as error:
            return Fetched(digest, error)
        return Fetched(digest, LocalBundle(bundle, self._local_path(digest)))

    async def _on_disk(self, work: Callable[[], Result]) -> Result:
        async with self._disk:
            return await asyncio.to_thread(work)

    def _verify(self, data: bytes | Path, digest: Digest | None) -> VerifiedBundle:
        return verify_bundle(
            data,
            backbone=self._demands.backbone,
            limits=self._demands.limits,
            expected_digest=digest,
            trusted_keys=self._demands.trusted_keys,
        )


def _checked(fetched: Fetched, unkept: CacheUnwritable | None) -> Fetched:
    """A full disk keeps out only what workers read from it: the catalogs of ranking heads."""
    outcome = fetched.outcome
    if unkept is None or isinstance(outcome, PeterRecError):
        return fetched
    is_read = outcome.bundle.manifest.described_kind.has_catalog
    return Fetched(fetched.digest, unkept) if is_read else fetched
