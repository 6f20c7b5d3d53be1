"""Bundles on their way into the table: loaded, validated, and kept until a table may name them."""

from collections.abc import Callable, Sequence

import structlog

from peterrec.model.errors import PeterRecError
from peterrec.model.inference.steps import Steps
from peterrec.patches.identity import Digest
from peterrec.service.device.serving_table import ServingTable
from peterrec.service.device.slots import LocalBundle
from peterrec.service.device.stores import Store
from peterrec.service.errors import HeadBudgetExceeded, LoadFailed, PatchBudgetExceeded

log = structlog.get_logger()

NO_ROOM = (HeadBudgetExceeded, PatchBudgetExceeded)
"""Errors of a bundle that may have room once others have been freed."""

Failures = dict[str, PeterRecError]
"""The errors of the bundles that could not be loaded, by digest."""


class Loading:
    """Loads bundles for the next table. Used by the device thread only, which runs batches between
    the steps. One load begins when the last one has ended.

    ``make_room`` frees the bundles that no table, worker or row needs.
    """

    def __init__(self, store: Store, table: ServingTable, make_room: Callable[[], object]) -> None:
        self._store = store
        self._table = table
        self._make_room = make_room
        self._loaded: list[Digest] = []

    def load(self, bundles: Sequence[LocalBundle]) -> Steps[Failures]:
        """Load and validate bundles for the next table; return the errors of those refused."""
        missing = [each for each in bundles if each.bundle.digest not in self._store.by_digest]
        failures = yield from self._load(missing)
        without_room = [
            local for local in missing if isinstance(failures.get(local.bundle.digest), NO_ROOM)
        ]
        if without_room:
            self._make_room()
            for local in without_room:  # one by one: one that is validated may be evicted again
                del failures[local.bundle.digest]
                failures |= yield from self._load([local])
        return failures

    def validate(self, local: LocalBundle) -> Steps[None]:
        """Load and validate a bundle that may never be served; raise why it is refused.

        It is freed like any other bundle that no table names.
        """
        for error in (yield from self.load([local])).values():
            raise error
        self.hand_over()

    def hand_over(self) -> None:
        """Let the next table name what was loaded. Until then nothing of it can be freed."""
        for digest in self._loaded:
            self._table.add(digest)
        self._loaded.clear()

    def _load(self, bundles: Sequence[LocalBundle]) -> Steps[Failures]:
        try:
            outcomes = yield from self._store.load_steps(bundles)
        except Exception as error:
            # One bad bundle must not keep out the others, and the device loop must not stop.
            log.error("load_failed", bundles=len(bundles), reason=repr(error))
            if len(bundles) == 1:
                return {bundles[0].bundle.digest: LoadFailed(error)}
            alone: Failures = {}
            for local in bundles:
                alone |= yield from self._load([local])
            return alone
        failures: Failures = {}
        for local, outcome in zip(bundles, outcomes, strict=True):
            if isinstance(outcome, PeterRecError):
                failures[local.bundle.digest] = outcome
            else:
                self._loaded.append(outcome.digest)
        return failures
