"""Typed events: what happened, told once; ``telemetry/metrics.py`` alone turns them into series."""

from collections.abc import Callable

import msgspec

from peterrec.patches.identity import TaskRef


class RequestFinished(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """An HTTP request for a prediction was answered. ``task`` is a registered one or empty."""

    tenant: str
    task: str
    outcome: str
    duration_s: float
    rows: int


class ItemsMapped(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A request's history items, and how many of them the vocabulary does not know."""

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
    """Rows that the device process did not answer with a result, by code."""

    code: str
    rows: int


class BundleSwapped(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """The table was flipped: registry change seen → every worker serves it."""

    duration_s: float
    loaded: int
    freed: int


class BundleRefused(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    reasons: list[str]


class RegistrySynced(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """The follower has read the registry; ``at`` is a Unix time."""

    revision: int
    at: float


class RegistryUnreachable(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    at: float


class DeviceMeasured(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """Gauges of the device process, every second."""

    queued_rows: int
    resident_bundles: int
    patch_bytes: int
    head_bytes: int
    backbone_bytes: int


class ChildRestarted(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """The supervisor started a dead child again (``device``, ``worker``, ``redis``)."""

    child: str


class TrafficCounted(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """Rows that a version of a task's traffic computed in a role, and how many it failed."""

    tenant: str
    task: str
    role: str
    rows: int
    errors: int


class TrafficMeasured(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """The worst version of a role within the guard's window; ``divergence`` from prod, if known."""

    tenant: str
    task: str
    role: str
    p99_s: float
    divergence: float | None


class TrafficEnded(msgspec.Struct, frozen=True, array_like=True, tag=13, gc=False):
    """Prod answers a task alone again, or with other traffic."""

    tenant: str
    task: str


class GuardBroken(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """This replica judged a task's traffic and let prod answer alone."""

    tenant: str
    task: str
    reason: str


class HeadsMoved(msgspec.Struct, frozen=True, array_like=True, tag=15, gc=False):
    """Ranking heads that left the device for others, and those that came back, since the last."""

    evicted: int
    evicted_bytes: int
    reloaded: int
    reloaded_bytes: int


class TasksChanged(msgspec.Struct, frozen=True, array_like=True, tag=16, gc=False):
    """The device process knows tasks anew or no longer; ``is_first``: it knows no others."""

    is_first: bool
    tasks: list[TaskRef]
    removed: list[TaskRef]


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
)

Emit = Callable[[Event], None]
"""Where events go: metrics in a server, a list in a test."""

encode_events = msgspec.msgpack.Encoder().encode
decode_events = msgspec.msgpack.Decoder(list[Event]).decode
