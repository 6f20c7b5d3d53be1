"""Who sends rows: the tenant and the priority by which the device is shared."""

from typing import Literal, NamedTuple, get_args

PriorityName = Literal["interactive", "batch"]
"""``interactive`` rows have somebody waiting for them; ``batch`` rows take what these leave."""

PRIORITIES: tuple[PriorityName, ...] = get_args(PriorityName)
INTERACTIVE, BATCH = range(len(PRIORITIES))
"""Priorities as they pass between processes: places in ``PRIORITIES``."""

PRIORITY_WEIGHTS = {INTERACTIVE: 0.9, BATCH: 0.1}
"""The part of the device, and of a worker, that each priority gets while both wait."""


class Sender(NamedTuple):
    """A tenant, and the priority of a call. Rows of one sender wait in one line."""

    tenant: str
    priority: int = INTERACTIVE


NOBODY = Sender("")
"""The sender of rows that belong to no tenant."""
