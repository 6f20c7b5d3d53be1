"""Tells a child process that hangs from one that is busy."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from peterrec.patches.redis.embedded import EmbeddedRedis
from peterrec.service.system.pulse import Pulse

LOOK_INTERVAL_S = 0.5
"""Seconds between two looks at a child."""

LONG_STEP_LIMIT_S = 600.0
"""Seconds without progress in a long step, such as one kernel's compilation or reading a backbone,
after which a child hangs."""

PING_INTERVAL_S = 1.0
"""Seconds between two questions to the embedded Redis, and until one counts as not answered."""

STOPPED, STUCK = "stopped", "stuck"
"""Why a child hangs: it was stopped by a signal, or its main thread makes no progress."""

_STOPPED_STATES, _AT_DISK = ("T", "t"), "D"
"""States of a process in ``/proc``; one that waits for the disk can't even be killed."""


@dataclass(slots=True)
class Liveness:
    """Looks at one process again and again.

    Silence is counted in looks rather than by the clock. So a machine that slept, or is so busy
    that this process hardly runs, makes no child hang.
    """

    pulse: Pulse
    limit_s: float
    silent_s: float = 0.0
    _seen: float = field(default=0.0, init=False)

    def look(self, pid: int) -> str:
        """Look after ``LOOK_INTERVAL_S``; return why process ``pid`` hangs, or an empty text."""
        state = process_state(pid)
        progress = self.pulse.progress_at
        is_silent = progress == self._seen or self.pulse.pid != pid
        self._seen = progress
        if state == _AT_DISK or not is_silent:
            self.silent_s = 0.0
            return ""
        self.silent_s += LOOK_INTERVAL_S
        is_stopped = state in _STOPPED_STATES
        is_long = self.pulse.pid != pid or self.pulse.is_in_long_step
        limit_s = LONG_STEP_LIMIT_S if is_long and not is_stopped else self.limit_s
        if self.silent_s < limit_s:
            return ""
        return STOPPED if is_stopped else STUCK


@dataclass(slots=True)
class RedisSilence:
    """Counts for how long the embedded Redis has not answered."""

    limit_s: float
    silent_s: float = 0.0
    _asked_at: float = field(default=float("-inf"), init=False)

    def look(self, redis: EmbeddedRedis) -> str:
        """Ask it once a second; return why it hangs, or an empty text. Blocks for a second."""
        pid = redis.pid
        if pid is None or monotonic() - self._asked_at < PING_INTERVAL_S:
            return ""
        self._asked_at = monotonic()
        if redis.answers(PING_INTERVAL_S) or process_state(pid) == _AT_DISK:
            self.silent_s = 0.0
        else:
            self.silent_s += PING_INTERVAL_S
        if self.silent_s < self.limit_s:
            return ""
        self.silent_s = 0.0
        return STOPPED if process_state(pid) in _STOPPED_STATES else STUCK


def process_state(pid: int) -> str:
    """The letter of a process's state in ``/proc``; empty on systems without it."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return ""
