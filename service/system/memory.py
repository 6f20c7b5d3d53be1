"""Memory of the processes that serve: what is not looked at again and again, what is given back."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

ALLOCATIONS_BETWEEN_LOOKS = 50_000
"""Python's 700 come up every few requests, which leave no cycles: looking for some took 5 %."""


@contextmanager
def sparing_the_collector() -> Iterator[None]:
    """Take what lives now out of garbage collection; enter it when all is loaded.

    In a worker, walking it took 50 to 75 ms two or three times a second under load: its p99.
    """
    gc.collect()
    gc.freeze()
    usual = gc.get_threshold()
    gc.set_threshold(ALLOCATIONS_BETWEEN_LOOKS, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()  # extensions expect to be collected at the end of a process


def give_back_memory() -> None:
    """Return to the system what the allocator keeps of freed memory; blocks for a millisecond.

    Of what hundreds of registrations needed for a moment it keeps a kilobyte for each.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)
