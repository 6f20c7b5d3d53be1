"""Where verified bundles come from: the local cache first, then the registry."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from patches.blob_cache import BlobCache
from patches.errors import BlobCorrupt, BlobMissing
from patches.identity import Digest
from patches.records import RegistrySnapshot
from patches.registry import Registry
from patches.signatures import TrustedKeys
from patches.verify import BackboneIdentity, BundleLimits, VerifiedBundle, verify_bundle

log = structlog.get_logger()

Result = TypeVar("Result")

UPLOADS_KEPT = 256
"""Newest uploads that stay cached though no alias names them yet."""


@dataclass(frozen=True, slots=True)
class Demands:
    """What a bundle must satisfy here; with ``trusted_keys``, one of them must have signed it."""

    backbone: BackboneIdentity
    limits: BundleLimits
    trusted_keys: TrustedKeys | None = None


class BundleSource:
    """Fetches, caches and verifies; hashing runs in threads, off the event loop."""

    def __init__(self, registry: Registry, cache: BlobCache, demands: Demands) -> None:
        self._registry = registry
        self._cache = cache
        self._demands = demands
        self._disk = asyncio.Lock()
        self._uploads: deque[Digest] = deque(maxlen=UPLOADS_KEPT)

    async def fetch(self, digest: Digest) -> VerifiedBundle:
        """The bundle of a digest; BundleRejected, BlobMissing or RegistryUnavailable."""
        data = await self._on_disk(lambda: self._cached(digest))
        if data is None:
            data = await self._registry.get_blob(digest)
            await self._keep(digest, data)
        return await asyncio.to_thread(self._verify, data, digest)

    async def accept(self, spooled: Path) -> VerifiedBundle:
        """Verify an upload and keep it in the cache; BundleRejected if it does not pass."""
        bundle = await asyncio.to_thread(self._verify, spooled, None)
        self._uploads.append(bundle.digest)
        await self._keep(bundle.digest, await asyncio.to_thread(spooled.read_bytes))
        return bundle

    async def collect(self) -> None:
        """Drop blobs from the registry that no version names any more."""
        dropped = await self._registry.gc(dry_run=False)
        if dropped.blobs:
            log.info("blobs_collected", blobs=dropped.blobs, size_bytes=dropped.size_bytes)

    async def remember(self, snapshot: RegistrySnapshot) -> None:
        """Keep what is served, and only that, for a restart while Redis is away."""
        records = snapshot.tasks.values()
        named = {target.digest for task in records for target in task.aliases.values()}
        named |= {d for task in records if task.traffic for d in task.traffic.versions}
        await self._on_disk(lambda: self._cache.save_snapshot(snapshot))
        await self._on_disk(lambda: self._cache.retain(named | set(self._uploads)))

    async def recall(self) -> RegistrySnapshot | None:
        """What was served when last heard of the registry."""
        return await self._on_disk(self._cache.load_snapshot)

    def local_path(self, bundle: VerifiedBundle) -> str:
        """Where the bundle's file lies on this machine."""
        return str(self._cache.path_of(bundle.digest).resolve())

    def _cached(self, digest: Digest) -> bytes | None:
        try:
            return self._cache.get(digest)
        except BlobMissing:
            return None
        except BlobCorrupt as error:
            log.error(error.code, reason=error.message)
            return None

    async def _keep(self, digest: Digest, data: bytes) -> None:
        await self._on_disk(lambda: self._cache.put(digest, data))

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
