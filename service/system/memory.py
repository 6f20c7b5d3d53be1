"""Memory of the serving processes: less garbage collection, and freed memory returned."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

ALLOCATIONS_BETWEEN_COLLECTIONS = 50_000
"""Net allocations that start a garbage collection.

CPython's default of 700 is reached every few requests. Requests create no cycles, and these
collections took 5 % of the CPU time.
"""


@contextmanager
def sparing_the_collector() -> Iterator[None]:
    """Exclude the objects that exist now from garbage collection, and collect less often.

    Enter it when everything is loaded. In a worker, visiting these objects took 50 to 75 ms two or
    three times a second under load, which was its 99th percentile of latency.
    """
    gc.collect()
    gc.freeze()
    usual = gc.get_threshold()
    gc.set_threshold(ALLOCATIONS_BETWEEN_COLLECTIONS, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()  # extensions expect to be collected when the process ends


def give_back_memory() -> None:
    """Return freed memory that the allocator keeps to the system. Blocks for a millisecond.

    After hundreds of registrations the allocator keeps a kilobyte for each of them otherwise.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)
