"""Counts of what a worker sees of a task's canaries and shadows, sent to the device process."""

import asyncio
from collections.abc import Callable

from peterrec.model.errors import Category, PeterRecError
from peterrec.service.errors import BundleGone, BundleNotReady
from peterrec.service.predict.kinds import Prediction, divergence
from peterrec.service.protocol.messages import TrafficSeen
from peterrec.service.protocol.served_task import ServedTask, Split
from peterrec.service.protocol.tally import Tallies, Tally

SEND_INTERVAL_S = 0.2
"""Seconds after the first row until the sums are sent: five messages a second at most."""


def is_fault(error: PeterRecError) -> bool:
    """True if the version may be to blame, and not the caller.

    A deadline counts as a fault of the version although load may be the reason: a guard errs on the
    safe side.
    """
    of_bundle = isinstance(error, BundleGone | BundleNotReady)
    return of_bundle or error.category in {Category.INTERNAL, Category.DEADLINE}


class TrafficObserver:
    """Sums up rows and sends the sums a few times a second, if there are any.

    Lives on the event loop.
    """

    def __init__(self, send: Callable[[TrafficSeen], None]) -> None:
        self._send = send
        self._sums: dict[tuple[str, str, int], Tallies] = {}

    def count(
        self,
        split: Split,
        by: ServedTask,
        outcome: Prediction | PeterRecError,
        latency_s: float,
        prods: Prediction | PeterRecError | None = None,
    ) -> None:
        """Count a version's outcome for one row, and its divergence from prod's, if that is given.

        A refusal that the caller caused is not counted.
        """
        is_error = isinstance(outcome, PeterRecError)
        if isinstance(outcome, PeterRecError) and not is_fault(outcome):
            return
        diverged = None
        if isinstance(outcome, Prediction) and isinstance(prods, Prediction):
            diverged = divergence(outcome, prods)
        if not self._sums:
            asyncio.get_running_loop().call_later(SEND_INTERVAL_S, self._send_sums)
        tallies = self._sums.setdefault((*split.ref, split.revision), {})
        tally = tallies.setdefault((by.bundle.digest, by.role), Tally())
        tally.count(latency_s, is_error=is_error, diverged=diverged)

    def _send_sums(self) -> None:
        sums, self._sums = self._sums, {}
        for (tenant, task, revision), tallies in sums.items():
            versions = [tally.seen(digest, role) for (digest, role), tally in tallies.items()]
            self._send(TrafficSeen(tenant, task, revision, versions))
