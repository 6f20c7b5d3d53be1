"""Calls that are refused for overload and come back at once: how fast a worker reads them."""

import math
import time
from collections.abc import Callable

REFUSALS_PER_S = 250.0
"""Refusals for overload that a worker gives a tenant per second.

One costs about 0.1 ms when many come together, and twice that when it interrupts the device on the
same core (``bench overload``). So these are a twentieth of a core at most.
"""

AT_ONCE_S = 1.0
"""Seconds of refusals that are given at once before the first pause: a peak of load is no flood."""

TICK_S = 0.1
"""Pauses end at multiples of this, many together: a worker that wakes up once costs less."""

LONGEST_PAUSE_S = 10.0
"""Seconds of the longest pause, also for a tenant whose quota is used up for minutes."""

MAX_TENANTS = 1024


class RefusalPace:
    """Says how long to leave a connection unread after a refusal.

    There is no pause as long as refused clients wait as they are told, or are few. Otherwise their
    calls wait in the kernel, where they cost nothing, instead of in a loop through the worker.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_at: dict[str, float] = {}

    def pause_s(self, tenant: str, retry_after_s: float) -> float:
        """Count a refusal and return the seconds of the pause after it.

        A client is never left longer than it was told to stay away.
        """
        now = self._clock()
        if len(self._next_at) >= MAX_TENANTS:
            self._next_at = {name: at for name, at in self._next_at.items() if at > now}
        next_at = max(self._next_at.get(tenant, 0.0), now) + 1 / REFUSALS_PER_S
        self._next_at[tenant] = min(next_at, now + AT_ONCE_S + retry_after_s)
        resume_at = next_at - AT_ONCE_S
        if resume_at <= now:
            return 0.0
        return min(math.ceil(resume_at / TICK_S) * TICK_S - now, retry_after_s)
