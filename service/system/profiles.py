"""Lets a profiler look at this process."""

import ctypes
import sys

SET_PTRACER = 0x59616D61
"""``PR_SET_PTRACER`` of Linux' prctl."""

ANY_PROCESS = 2**64 - 1
"""``PR_SET_PTRACER_ANY``; another user's processes still may not."""


def allow_profiles() -> None:
    """Let other processes of this user read this one's stacks, where Linux asks for that (Yama)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PTRACER, ctypes.c_ulong(ANY_PROCESS))
