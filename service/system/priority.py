"""Low priority for threads that should not delay those that serve."""

import os
import sys
import threading

NICENESS = 10
"""Niceness that leaves a thread a tenth of the CPU time of a serving thread on the same core."""


def step_back() -> None:
    """Lower the priority of the calling thread, from now on."""
    if sys.platform == "linux":  # elsewhere the priority of the whole process would be lowered
        thread = threading.get_native_id()
        niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
        os.setpriority(os.PRIO_PROCESS, thread, niceness)
