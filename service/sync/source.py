"""The source of verified bundles: uploads, the local cache, and then the registry."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from peterrec.model.errors import PeterRecError
from peterrec.patches.backup.copies import Copies
from peterrec.patches.backup.copying import update_copy
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
    SnapshotCorrupt,
)
from peterrec.patches.identity import Blob, Digest
from peterrec.patches.registry.blobs import Blobs
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.losses import Knowledge
from peterrec.patches.registry.records import RegistrySnapshot
from peterrec.patches.registry.registry import Registry
from peterrec.service.device.slots import LocalBundle

log = structlog.get_logger()

Result = TypeVar("Result")

UPLOADS_KEPT = 256
"""Number of the newest uploads that stay cached even if no alias names them yet."""

BATCH_BUNDLES = 64
"""Bundles that are fetched, verified and validated together; their probes fill one forward."""

BATCH_BYTES = 64 << 20
"""Bytes of one batch. Its bundles are in memory together; further ones go into the next batch."""

Found = dict[Digest, Blob]


@dataclass(frozen=True, slots=True)
class Demands:
    """What this server requires of a bundle; with ``trusted_keys``, a signature by one of them.

    ``others`` are the further backbones that it may be for.
    """

    backbone: BackboneIdentity
    limits: BundleLimits
    trusted_keys: TrustedKeys | None = None
    others: tuple[BackboneIdentity, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified bundle, or the error in its place."""

    digest: Digest
    outcome: LocalBundle | PeterRecError


class BundleSource:
    """Fetches, caches and verifies bundles. Hashing runs in threads, not on the event loop.

    Bundles are fetched from ``registry`` and uploads stored in ``uploads``, which is the same
    registry through a client that gives up sooner: a caller waits for it. ``knowledge`` is what is
    known of both.
    """

    def __init__(
        self,
        registry: Registry,
        uploads: Registry,
        cache: BlobCache,
        demands: Demands,
        knowledge: Knowledge,
    ) -> None:
        self.knowledge = knowledge
        self._registry = registry
        self._upload_registry = uploads
        self._cache = cache
        self._demands = demands
        self._copies = Copies(cache.directory)
        self._erased_at = 0
        self._directory = cache.directory.resolve()
        self._disk = asyncio.Lock()
        self._asking: asyncio.Task[Blobs] | None = None
        self._was_given_up = False
        self._uploads: deque[Digest] = deque(maxlen=UPLOADS_KEPT)

    async def fetch_some(self, digests: Sequence[Digest]) -> list[Fetched]:
        """Fetch the first few of the bundles, at least one; each is verified or refused by itself.

        Cached bundles come first. RegistryUnavailable if none is cached and Redis is unavailable.
        """
        some = digests[:BATCH_BUNDLES]
        cached = await self._on_disk(lambda: self._cached(some))
        if cached:
            return await asyncio.to_thread(self._verified, cached)
        blobs = await self._ask_registry(some)
        found = {digest: blob for digest, blob in blobs.items() if isinstance(blob, Blob)}
        unkept = await self._on_disk(lambda: self._keep(found))
        failed = [Fetched(d, blob) for d, blob in blobs.items() if not isinstance(blob, Blob)]
        verified = await asyncio.to_thread(self._verified, found)
        return [*failed, *(_if_readable(each, unkept.get(each.digest)) for each in verified)]

    async def _ask_registry(self, digests: Sequence[Digest]) -> Blobs:
        self._asking = asyncio.create_task(self._registry.blobs.get_some(digests, BATCH_BYTES))
        try:
            return await self._asking
        except asyncio.CancelledError:
            if not self._was_given_up:
                raise
            raise RegistryUnavailable(
                "the connection to Redis was lost.", hint="Serving continues."
            ) from None
        finally:
            self._asking.cancel()
            self._asking, self._was_given_up = None, False

    def give_up(self) -> None:
        """Stop waiting for bundles from Redis, because it is known to be unavailable."""
        if self._asking is not None:
            self._was_given_up = True
            self._asking.cancel()

    def cached_first(self, digests: Sequence[Digest]) -> list[Digest]:
        """Sort bundles for loading: those that need no Redis come first. Blocks for a moment."""
        cached = self._cache.digests()
        return sorted(digests, key=lambda digest: digest not in cached)

    async def accept(self, spooled: Path) -> LocalBundle:
        """Read and verify an upload and keep it in the cache; BundleRejected if it does not pass.

        The file is not needed afterwards.
        """
        bundle = await asyncio.to_thread(self._verify, spooled, None)
        self._uploads.append(bundle.digest)
        await self._on_disk(lambda: self._cache.put(bundle.blob))
        return LocalBundle(bundle, self._local_path(bundle.digest))

    async def store(self, blob: Blob) -> None:
        """Store an upload in the registry; RegistryUnavailable."""
        await self._upload_registry.blobs.put(blob)

    async def close(self) -> None:
        """Close the connections that are used for uploads."""
        await self._upload_registry.close()

    async def collect(self) -> None:
        """Remove blobs from the registry that no version names any more."""
        dropped = await self._registry.blobs.collect(dry_run=False)
        if dropped.blobs:
            log.info("blobs_collected", blobs=dropped.blobs, size_bytes=dropped.size_bytes)

    async def settle(self) -> None:
        """Wait until all cached bundles are on the disk; cancelling it does no harm."""
        while not await self._on_disk(self._cache.settle):
            pass

    async def remember(
        self, snapshot: RegistrySnapshot, in_use: Callable[[], Collection[Digest]]
    ) -> None:
        """Keep what is served, for a restart while Redis is unavailable, and a copy to restore it.

        ``in_use`` returns the bundles whose files are needed although the snapshot does not name
        them. It is asked last: bundles of later changes may come while the copy is written. Those
        that older copies name are kept, too, as far as there is room.
        """
        named = {digest for entry in snapshot.tasks.values() for digest in entry.digests}
        await self._on_disk(lambda: self._cache.save_snapshot(snapshot))
        await self._keep_copy(snapshot)
        async with self._disk:  # uploads are noted before they are written, so none is missing here
            kept = {*named, *self._uploads, *in_use()}
            await asyncio.to_thread(self._retain, kept)

    async def _keep_copy(self, snapshot: RegistrySnapshot) -> None:
        """Bring the copy up to date; without Redis it stays behind until the next change."""
        deleted = [each.tenant for each in snapshot.tenants.values() if each.is_deleted]
        try:
            if snapshot.last_deletion > self._erased_at:
                await asyncio.to_thread(self._copies.erase, deleted)
            await update_copy(self._registry.store, self._copies, snapshot)
            if snapshot.last_deletion > self._erased_at:
                await asyncio.to_thread(self._copies.erase, deleted)
            self._erased_at = snapshot.last_deletion
        except RegistryUnavailable as error:
            log.info("copy_is_behind", code=error.code)
        except SnapshotCorrupt as error:
            log.error(error.code, reason=error.message)
            await asyncio.to_thread(self._copies.newest.path.unlink, missing_ok=True)

    def _retain(self, kept: set[Digest]) -> None:
        """Remove what is not kept; nothing is there to remove if the folder itself is gone."""
        with contextlib.suppress(FileNotFoundError):
            others = self._cache.digests() - kept
            sizes = {digest: self._cache.size_of(digest) for digest in others}
            self._cache.retain(kept | self._copies.bundles(sizes))

    def forget_uploads(self) -> None:
        """Keep no upload any longer only because it is new."""
        self._uploads.clear()

    async def recall(self) -> RegistrySnapshot | None:
        """Read the last snapshot that was remembered; None if there is none."""
        return await self._on_disk(self._cache.load_snapshot)

    def _local_path(self, digest: Digest) -> str:
        """Return the bundle's file on this machine: workers read catalogs, the device heads."""
        return str(self._directory / self._cache.path_of(digest).name)

    def _cached(self, digests: Sequence[Digest]) -> Found:
        """Read those bundles that are cached, up to BATCH_BYTES."""
        found: Found = {}
        size = 0
        for digest in digests:
            try:
                blob = self._cache.get(digest)
            except BlobMissing:
                continue
            except BlobCorrupt as error:
                log.error(error.code, reason=error.message)
                continue
            found[digest] = blob
            size += len(blob.data)
            if size >= BATCH_BYTES:
                break
        return found

    def _keep(self, found: Found) -> dict[Digest, CacheUnwritable]:
        """Write bundles to the cache; return the errors of those that could not be written."""
        unkept: dict[Digest, CacheUnwritable] = {}
        for digest, blob in found.items():
            try:
                self._cache.put(blob)
            except CacheUnwritable as error:
                log.error(error.code, reason=error.message)
                unkept[digest] = error
        return unkept

    def _verified(self, found: Found) -> list[Fetched]:
        return [self._checked(digest, blob) for digest, blob in found.items()]

    def _checked(self, digest: Digest, blob: Blob) -> Fetched:
        try:
            bundle = self._verify(blob, digest)
        except BundleRejected as error:
            return Fetched(digest, error)
        return Fetched(digest, LocalBundle(bundle, self._local_path(digest)))

    async def _on_disk(self, work: Callable[[], Result]) -> Result:
        async with self._disk:
            return await asyncio.to_thread(work)

    def _verify(self, source: Blob | Path, digest: Digest | None) -> VerifiedBundle:
        return verify_bundle(
            source,
            backbone=self._demands.backbone,
            limits=self._demands.limits,
            expected_digest=digest,
            trusted_keys=self._demands.trusted_keys,
            others=self._demands.others,
        )


def _if_readable(fetched: Fetched, unkept: CacheUnwritable | None) -> Fetched:
    """Replace a ranking by the error if its file is missing, because workers read its catalog.

    The head of another kind then stays on the device, as an item table can't be read again.
    """
    outcome = fetched.outcome
    if unkept is None or isinstance(outcome, PeterRecError):
        return fetched
    is_read = outcome.bundle.manifest.described_kind.has_catalog
    return Fetched(fetched.digest, unkept if is_read else LocalBundle(outcome.bundle))
