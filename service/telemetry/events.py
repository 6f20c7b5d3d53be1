"""Typed events: each says what happened, once. Only ``metrics.py`` turns them into series."""

from collections.abc import Callable

import msgspec

from peterrec.patches.identity import TaskRef


class RequestFinished(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A prediction request was answered for one task: a registered one, or empty.

    ``outcome`` is the task's own; ``rows`` histories were asked for. ``instances`` counts them by
    outcome if theirs differ from the task's.
    """

    tenant: str
    task: str
    outcome: str
    duration_s: float
    rows: int
    instances: dict[str, int] | None = None


class ItemsMapped(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A history was mapped: how many items it has, and how many the vocabulary does not know."""

    items: int
    unknown_items: int


class BatchFinished(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """One batch ran on the device; ``queue_waits_s`` has one wait per row."""

    rows: int
    distinct_bundles: int
    positions: int
    duration_s: float
    queue_waits_s: list[float]


class RowsRefused(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """The device process did not run these rows; ``code`` says why."""

    code: str
    rows: int


class BundleSwapped(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """The table changed. ``duration_s`` is from noticing the registry's change to serving it."""

    duration_s: float
    loaded: int
    freed: int


class BundleRefused(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """A bundle was refused, for these codes."""

    reasons: list[str]


class RegistrySynced(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """The follower has read the registry; ``at`` is a Unix time."""

    revision: int
    at: float


class RegistryUnreachable(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """The follower could not read the registry; ``at`` is a Unix time."""

    at: float


class DeviceMeasured(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """Gauges of the device process, emitted every second."""

    queued_rows: int
    resident_bundles: int
    patch_bytes: int
    head_bytes: int
    backbone_bytes: int


class ChildRestarted(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """A child process died and is restarted; ``child`` is ``device``, ``worker`` or ``redis``."""

    child: str


class TrafficCounted(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """A version of a task's traffic computed these rows in a role, and failed some of them."""

    tenant: str
    task: str
    role: str
    rows: int
    errors: int


class TrafficMeasured(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """Latency and divergence from prod of the worst version of a role, in the guard's window."""

    tenant: str
    task: str
    role: str
    p99_s: float
    divergence: float | None


class TrafficEnded(msgspec.Struct, frozen=True, array_like=True, tag=13, gc=False):
    """The traffic of a task was removed or replaced."""

    tenant: str
    task: str


class GuardBroken(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """A bound of a task's guard was broken, and prod answers alone on this replica."""

    tenant: str
    task: str
    reason: str


class HeadsMoved(msgspec.Struct, frozen=True, array_like=True, tag=15, gc=False):
    """Ranking heads were evicted or reloaded since the last such event."""

    evicted: int
    evicted_bytes: int
    reloaded: int
    reloaded_bytes: int


class TasksChanged(msgspec.Struct, frozen=True, array_like=True, tag=16, gc=False):
    """Tasks were added, changed or removed. With ``is_first`` there are no others."""

    is_first: bool
    tasks: list[TaskRef]
    removed: list[TaskRef]


class AnswerExplained(msgspec.Struct, frozen=True, array_like=True, tag=17, gc=False):
    """An answer was explained, or not; ``rows`` were run for it in addition to its own."""

    rows: int
    outcome: str


Event = (
    RequestFinished
    | ItemsMapped
    | BatchFinished
    | RowsRefused
    | BundleSwapped
    | BundleRefused
    | RegistrySynced
    | RegistryUnreachable
    | DeviceMeasured
    | ChildRestarted
    | TrafficCounted
    | TrafficMeasured
    | TrafficEnded
    | GuardBroken
    | HeadsMoved
    | TasksChanged
    | AnswerExplained
)

Emit = Callable[[Event], None]
"""Receives events: the metrics in a server, a list in a test."""

encode_events = msgspec.msgpack.Encoder().encode
decode_events = msgspec.msgpack.Decoder(list[Event]).decode
