"""Brings bundles to the device: fetches and verifies the next few while the last are loaded."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import BundleRejected, Reason, RegistryUnavailable
from peterrec.patches.identity import Digest
from peterrec.service.device.load import Failures
from peterrec.service.device.slots import LocalBundle
from peterrec.service.errors import PatchBudgetExceeded, ProbeFailed
from peterrec.service.protocol.messages import RefusedBundle
from peterrec.service.sync.source import BundleSource, Fetched

RETRY_FETCH_S = 0.2
"""Seconds until a bundle is fetched again after the registry was away."""

RETRY_LOAD_S = 2.0
"""Seconds until a bundle is loaded again after an error that can pass, such as a full disk."""

RETRY_ROOM_S = 10.0
"""Seconds until a bundle is loaded again for whose patch there was no room: only others can go."""

REASONS_TOLD = 5
"""Reasons against a refused bundle that callers of its task are told."""

FLIP_INTERVAL_S = 0.25
"""Seconds between table changes while many bundles load: those loaded are served already."""


class BundleLoader:
    """Loads the bundles that are missing. Lives on the follower's event loop.

    ``load`` has the device load bundles; ``flip`` changes the table to what is loaded and calls
    ``want`` with what is still missing; ``refuse`` is called with each bundle that is left out.
    """

    def __init__(
        self,
        source: BundleSource,
        load: Callable[[Sequence[LocalBundle]], Awaitable[Failures]],
        flip: Callable[[], Awaitable[None]],
        refuse: Callable[[Digest, PeterRecError], None],
    ) -> None:
        self._source = source
        self._load_on_device = load
        self._flip = flip
        self._refuse = refuse
        self._wanted: dict[Digest, None] = {}  # in the order to load them
        self._under_way: set[Digest] = set()
        self._refused: dict[Digest, RefusedBundle] = {}
        self._failing: set[Digest] = set()
        self._retry_at: dict[Digest, float] = {}
        self._flipped_at = float("-inf")
        self._is_flip_due = False
        self._has_work = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """True if each wanted bundle is loaded, was refused, or waits until it is tried again."""
        return not self._under_way and not self._due()

    @property
    def wanted(self) -> frozenset[Digest]:
        """The bundles that are to be loaded, or are being loaded."""
        return frozenset(self._wanted)

    @property
    def refused(self) -> list[RefusedBundle]:
        """The wanted bundles that will never be loaded, since their bytes can't change."""
        return list(self._refused.values())

    @property
    def failing(self) -> int:
        """The number of wanted bundles that failed the last time, and are tried again."""
        return len(self._failing)

    def want(self, missing: Collection[str]) -> None:
        """Replace the list of wanted bundles by those that are missing now."""
        digests = [Digest(digest) for digest in missing]
        if self._wanted.keys() >= set(digests):
            kept = set(digests)
            self._wanted = {digest: None for digest in self._wanted if digest in kept}
        else:
            self._wanted = dict.fromkeys(self._source.cached_first(digests))
        self._refused = {d: each for d, each in self._refused.items() if d in self._wanted}
        self._failing &= self._wanted.keys()
        self._retry_at = {d: at for d, at in self._retry_at.items() if d in self._wanted}
        self._has_work.set()

    async def run(self) -> None:
        """Load the wanted bundles, until cancelled."""
        ahead = asyncio.create_task(self._fetch())
        try:
            while True:
                fetched = await ahead
                ahead = asyncio.create_task(self._fetch())
                await self._load(fetched)
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
            self._under_way.clear()

    async def _fetch(self) -> list[Fetched]:
        """Fetch the next few bundles; returns none if the registry is away."""
        while not (some := self._due()):
            await self._until_due()
        self._under_way.update(some)
        fetched: list[Fetched] = []
        try:
            fetched = await self._source.fetch_some(some)
        except RegistryUnavailable:
            self._put_off(some, RETRY_FETCH_S)  # none of them is cached
        except PeterRecError as error:
            self._put_off(some, RETRY_LOAD_S)
            self._refuse(some[0], error)
        finally:
            self._under_way.difference_update(some)
            self._under_way.update(each.digest for each in fetched)
        return fetched

    async def _load(self, fetched: Sequence[Fetched]) -> None:
        """Load fetched bundles; an error of one does not delay the others."""
        bundles = [
            each.outcome
            for each in fetched
            if isinstance(each.outcome, LocalBundle) and each.digest in self._wanted
        ]
        failures = {
            str(each.digest): each.outcome
            for each in fetched
            if isinstance(each.outcome, PeterRecError)
        }
        if bundles:
            failures |= await self._load_on_device(bundles)
        for each in fetched:
            self._under_way.discard(each.digest)
            if each.digest in failures:
                self._note(each.digest, failures[each.digest])
            else:
                self._wanted.pop(each.digest, None)
                self._failing.discard(each.digest)
                self._is_flip_due = True
        is_time = self.is_idle or time.monotonic() - self._flipped_at >= FLIP_INTERVAL_S
        if self._is_flip_due and is_time:
            self._flipped_at, self._is_flip_due = time.monotonic(), False
            await self._flip()

    def _note(self, digest: Digest, error: PeterRecError) -> None:
        if isinstance(error, BundleRejected | ProbeFailed):
            self._refused[digest] = _refused_bundle(digest, error)
            self._is_flip_due = True  # workers tell callers that trying again does not help
        else:
            # a missing blob, a full disk, no room for a head: may be cured meanwhile
            delay_s = RETRY_ROOM_S if isinstance(error, PatchBudgetExceeded) else RETRY_LOAD_S
            self._retry_at[digest] = time.monotonic() + delay_s
            self._is_flip_due |= digest not in self._failing  # the metrics tell of it
            self._failing.add(digest)
            self._has_work.set()  # whoever waits does not know yet when to try again
        self._refuse(digest, error)

    def _put_off(self, digests: Sequence[Digest], delay_s: float) -> None:
        self._retry_at |= dict.fromkeys(digests, time.monotonic() + delay_s)

    def _due(self) -> list[Digest]:
        now = time.monotonic()
        return [
            digest
            for digest in self._wanted
            if digest not in self._under_way
            and digest not in self._refused
            and self._retry_at.get(digest, now) <= now
        ]

    async def _until_due(self) -> None:
        """Wait until other bundles are wanted, or one may be tried again."""
        self._has_work.clear()
        waits = [at for digest, at in self._retry_at.items() if digest not in self._under_way]
        timeout = max(0.0, min(waits) - time.monotonic()) if waits else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):  # before 3.12, wait_for swallows a cancellation
                await self._has_work.wait()


def _refused_bundle(digest: Digest, error: BundleRejected | ProbeFailed) -> RefusedBundle:
    found: Sequence[Reason] = (Reason(error.code, error.message),)
    if isinstance(error, BundleRejected):
        found = error.reasons
    reasons = [f"{reason.code}: {reason.message}" for reason in found[:REASONS_TOLD]]
    more = [f"{len(found) - REASONS_TOLD} more"] if len(found) > REASONS_TOLD else []
    codes = [str(reason.code) for reason in found[:REASONS_TOLD]]
    return RefusedBundle(digest, "; ".join([*reasons, *more]), codes)
