"""Bundles on their way into the table: written, validated, and kept until a table names them."""

from collections.abc import Callable, Sequence

import structlog

from peterrec.model.errors import PeterRecError
from peterrec.service.device.serving_table import ServingTable
from peterrec.service.device.slots import LocalBundle, Residency, SlotStore
from peterrec.service.errors import HeadBudgetExceeded, LoadFailed

log = structlog.get_logger()

Failures = dict[str, PeterRecError]
"""What is wrong with some bundles, by digest."""


class Loading:
    """Used by the device thread only. ``make_room`` frees what no table, worker or row needs."""

    def __init__(
        self, store: SlotStore, table: ServingTable, make_room: Callable[[], object]
    ) -> None:
        self._store = store
        self._table = table
        self._make_room = make_room
        self._loaded: dict[str, Residency] = {}

    def load(self, bundles: Sequence[LocalBundle]) -> Failures:
        """Load and validate bundles for the next table; returns the errors of those refused."""
        missing = [local for local in bundles if not self._is_here(local.bundle.digest)]
        failures = self._load(missing)
        crowded = [
            local
            for local in missing
            if isinstance(failures.get(local.bundle.digest), HeadBudgetExceeded)
        ]
        if crowded:
            self._make_room()
            for local in crowded:  # one by one: what is validated may make room for the next
                del failures[local.bundle.digest]
                failures |= self._load([local])
        return failures

    def validate(self, local: LocalBundle) -> None:
        """Load and validate a bundle that no table may ever name: freed if none does for long."""
        for error in self.load([local]).values():
            raise error
        self.admit()

    def admit(self) -> None:
        """Hand over what was loaded: a table that is made now may name it."""
        for residency in self._loaded.values():
            self._table.admit(residency)
        self._loaded.clear()

    def _load(self, bundles: Sequence[LocalBundle]) -> Failures:
        try:
            outcomes = self._store.load_many(bundles)
        except Exception as error:
            # One bad bundle must not keep out its neighbours, and the loop must go on.
            log.error("load_failed", bundles=len(bundles), reason=repr(error))
            if len(bundles) == 1:
                return {bundles[0].bundle.digest: LoadFailed(error)}
            return {
                digest: failure
                for local in bundles
                for digest, failure in self._load([local]).items()
            }
        failures: Failures = {}
        for local, outcome in zip(bundles, outcomes, strict=True):
            if isinstance(outcome, PeterRecError):
                failures[local.bundle.digest] = outcome
            else:
                self._loaded[outcome.digest] = outcome
        return failures

    def _is_here(self, digest: str) -> bool:
        return digest in self._loaded or self._table.is_resident(digest)
