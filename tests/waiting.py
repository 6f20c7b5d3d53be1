"""Wait until a condition is true, with a deadline instead of a fixed sleep."""

import asyncio
import time
from collections.abc import Awaitable, Callable

POLL_S = 0.01


def eventually(is_so: Callable[[], bool], within_s: float = 10.0) -> None:
    """Return as soon as ``is_so()`` is true; fail at the deadline."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {within_s} s"
        time.sleep(POLL_S)


async def soon(is_so: Callable[[], bool | Awaitable[bool]], within_s: float = 10.0) -> None:
    """Wait on the event loop until ``is_so()`` is true; it may be a coroutine function."""
    deadline = time.monotonic() + within_s
    while True:
        found = is_so()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, f"not so within {within_s} s"
        await asyncio.sleep(POLL_S)
