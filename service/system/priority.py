"""Threads that may wait while others serve."""

import os
import sys
import threading

NICENESS = 10
"""Such a thread gets a tenth of what one that serves gets of a core that both want."""


def step_back() -> None:
    """Let other threads have the core before this one, from now on."""
    if sys.platform == "linux":  # elsewhere the whole process would step back
        thread = threading.get_native_id()
        niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
        os.setpriority(os.PRIO_PROCESS, thread, niceness)
