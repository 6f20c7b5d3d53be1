"""Python runs this when it starts with this folder on its path: a worker then notes long steps.

Each line of the file that ``LONG_STEPS`` names is the CPU time, in seconds, that a worker's event
loop spent between two turns of a timer of one millisecond. CPU time, since on a busy machine the
loop waits for its turn on a core.
"""

import os
import sys
import time
from pathlib import Path

NOTED_S = 0.01


def _watch(loop, file):
    last_s = time.thread_time()

    def beat():
        nonlocal last_s
        now_s = time.thread_time()
        if now_s - last_s > NOTED_S:
            file.write(f"{now_s - last_s:.4f}\n")
        last_s = time.thread_time()
        loop.call_later(0.001, beat)

    loop.call_soon(beat)


if "run-worker" in sys.argv or "run-worker" in getattr(sys, "orig_argv", ()):
    import uvloop

    _new_event_loop = uvloop.new_event_loop

    def _watched():
        loop = _new_event_loop()
        file = Path(os.environ["LONG_STEPS"]).open("a", buffering=1)  # noqa: SIM115  # to the end
        _watch(loop, file)
        return loop

    uvloop.new_event_loop = _watched
