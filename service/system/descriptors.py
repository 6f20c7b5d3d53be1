"""Descriptors of files and sockets: how many a process may have open."""

import resource

MOST = 65_536
"""Descriptors that a server asks for at most: more connections than one worker can serve."""

KEPT = 128
"""Descriptors of a worker that no connection gets: Redis, uploads, logs, the device's sockets."""


def raise_descriptor_limit() -> int:
    """Raise this process's limit as far as its user may, and return it. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft if soft != resource.RLIM_INFINITY else MOST
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def connection_limit() -> int:
    """Return how many connections a worker may have at a time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    usable = MOST if soft == resource.RLIM_INFINITY else min(soft, MOST)
    return max(16, usable - KEPT)
