"""Typed events: each says what happened, once. Only ``metrics.py`` turns them into series."""

from collections.abc import Callable

import msgspec

from peterrec.patches.identity import TaskRef
from peterrec.service.telemetry.timeline import Round
from peterrec.service.telemetry.trace_context import TraceContext

DIED, RESTART_REASONS = "died", ("died", "stopped", "stuck")
"""Why a child process is restarted: it ended, or it was ended as it hung. It hangs if a signal has
stopped it, or if it is stuck: it makes no progress."""


class RequestFinished(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A prediction request was answered for one task: a registered one, or empty.

    ``outcome`` is the task's own; ``rows`` histories were asked for. ``instances`` counts them by
    outcome if theirs differ from the task's. ``protocol`` is the one that the client speaks.
    ``trace_id`` (hex) is empty unless the request was traced.
    """

    tenant: str
    task: str
    outcome: str
    duration_s: float
    rows: int
    instances: dict[str, int] | None = None
    protocol: str = "json"
    trace_id: str = ""


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
    """The follower could not read the registry; ``at`` is a Unix time.

    With ``is_lost``, Redis answers, and does not hold what was known of the registry.
    """

    at: float
    is_lost: bool = False


class DeviceMeasured(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """Gauges of the device process, emitted every second.

    ``unservable_bundles`` are registered, and this replica refuses them. Of the tasks with a
    `prod`, ``prod_answering`` are answered, and ``prod_unfit`` are not since theirs is refused.
    ``backbones`` has the bytes of each backbone, of its patches and of its heads, by fingerprint.
    """

    queued_rows: int
    resident_bundles: int
    patch_bytes: int
    head_bytes: int
    backbone_bytes: int
    unservable_bundles: int = 0
    prod_registered: int = 0
    prod_answering: int = 0
    prod_unfit: int = 0
    no_bundle_fits: bool = False
    backbones: dict[str, list[int]] = {}


class ChildRestarted(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """A child process is restarted; ``child`` is ``device``, ``worker`` or ``redis``.

    ``reason`` is one of ``RESTART_REASONS``.
    """

    child: str
    reason: str = DIED


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
    """Tasks were added, changed or removed. With ``is_first`` there are no others.

    ``answering`` has the kind and the version number of each task's prod, in the order of
    ``tasks``; None where none answers.
    """

    is_first: bool
    tasks: list[TaskRef]
    removed: list[TaskRef]
    answering: list[tuple[str, int] | None] = []


class AnswerExplained(msgspec.Struct, frozen=True, array_like=True, tag=17, gc=False):
    """An answer was explained, or not; ``rows`` were run for it in addition to its own."""

    rows: int
    outcome: str


class TenantMeasured(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a tenant uses of each quota, and the quotas that it has, both by name.

    ``shares`` are the parts of its quotas for requests that this replica may use.
    """

    tenant: str
    used: dict[str, float]
    limits: dict[str, int]
    shares: dict[str, float] = {}


class TenantsMeasured(msgspec.Struct, frozen=True, array_like=True, tag=18, gc=False):
    """All tenants that the registry has counted; there are no others any more."""

    tenants: list[TenantMeasured]


class TenantAsked(msgspec.Struct, frozen=True, array_like=True, tag=19, gc=False):
    """What a tenant with quotas for requests was given, and how many calls each quota refused."""

    tenant: str
    admitted: dict[str, int]
    refused: dict[str, int]


class DevicePrepared(msgspec.Struct, frozen=True, array_like=True, tag=40, gc=False):
    """What was prepared since the last such event, so that no batch need wait for it.

    ``late_kernels`` were compiled while a batch waited. ``memory_bytes`` of a GPU are reserved.
    """

    kernels: int
    steps: int
    seconds: float
    late_kernels: int
    memory_bytes: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=30, gc=False):
    """A worker refused so many requests or connections with an error code."""

    code: str
    count: int


class TenantServed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The work that a tenant was given since the last event, in positions, and its waiting rows."""

    tenant: str
    work: float
    waiting: int


class DeviceShared(msgspec.Struct, frozen=True, array_like=True, tag=51, gc=False):
    """How the device was shared since the last event; tenants that asked for nothing are absent."""

    tenants: list[TenantServed]


class RequestTraced(msgspec.Struct, frozen=True, array_like=True, tag=60, gc=False):
    """A traced request has ended, with what its spans are made of.

    ``name`` is the route, ``about`` has the attributes, of which ``outcome`` is one. Times are on
    the system-wide monotonic clock. ``read_at`` is 0 if no body was read. ``process`` names the
    worker.
    """

    name: str
    trace: TraceContext
    began_at: float
    ended_at: float
    read_at: float
    rounds: list[Round]
    about: dict[str, str | int]
    process: str


class TracesLeftOut(msgspec.Struct, frozen=True, array_like=True, tag=61, gc=False):
    """Requests of a worker were not traced although they should have been: there were too many."""

    count: int


class AnswersSampled(msgspec.Struct, frozen=True, array_like=True, tag=62, gc=False):
    """What a worker saw in a sample of the answers of a task's prod since the last such event.

    ``cold`` of the ``answers`` rest on no item. ``outputs`` and ``scores`` count answers by output
    and by the bounds of ``prior``, the bundle's encoded ``AnswerPrior``.
    ``lists`` are numbers of rankings, one per history, ``histories`` those of their histories, and
    ``listed`` those of the items in them, out of ``catalog``.
    """

    tenant: str
    task: str
    version: int
    answers: int
    cold: int
    items: int
    unknown_items: int
    prior: bytes
    outputs: list[int]
    scores: list[int]
    histories: list[int]
    lists: list[int]
    listed: list[int]
    catalog: int


class FeedbackSums(msgspec.Struct, array_like=True, gc=False):
    """Sums over the outcomes that callers told of a version's answers.

    ``hits`` is how right the ``compared`` answers were, each from 0 to 1. ``bins`` has the count,
    the confidence and the hits of the answers in each tenth of confidence. ``error`` is the
    absolute error of the ``measured`` numbers.
    """

    compared: int = 0
    hits: float = 0.0
    measured: int = 0
    error: float = 0.0
    bins: dict[int, tuple[int, float, float]] = {}


class FeedbackGiven(msgspec.Struct, frozen=True, array_like=True, tag=63, gc=False):
    """A caller told the outcomes of answers of one version of a task."""

    tenant: str
    task: str
    version: int
    sums: FeedbackSums


class WebhookTried(msgspec.Struct, frozen=True, array_like=True, tag=70, gc=False):
    """A change was sent to a webhook. ``outcome`` is ``delivered``, ``failed`` or ``disabled``."""

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
    | TenantsMeasured
    | TenantAsked
    | DeviceShared
    | DevicePrepared
    | Refused
    | RequestTraced
    | TracesLeftOut
    | AnswersSampled
    | FeedbackGiven
    | WebhookTried
)

Emit = Callable[[Event], None]
"""Receives events: the metrics in a server, a list in a test."""

encode_events = msgspec.msgpack.Encoder().encode
decode_events = msgspec.msgpack.Decoder(list[Event]).decode
