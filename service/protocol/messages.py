"""What passes between HTTP workers and the device process, as msgpack over a unix socket.

Workers are zmq DEALERs, the device process a ROUTER. A worker's zmq message carries a message per
frame, all that it had to send in one turn of its loop. A worker says ``Hello`` on connecting and
every second after; the device process answers ``Welcome`` with the whole table if the worker does
not know its *epoch*, the number of this life of the device process. Array-encoded structs: new
fields go last and have defaults.
"""

from typing import Self

import msgspec

from peterrec.patches.identity import Digest, TaskRef
from peterrec.patches.interning import shared
from peterrec.patches.registry.records import TaskEntry

Handle = int
"""One residency of one bundle on the device, unique within an epoch; never used again."""


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One history for one bundle.

    ``tokens``: int32 token ids, oldest first, at most ``max_len``, without [CLS]. ``excluded`` and
    ``candidates``: int64 catalog indices of a ranking head; None for candidates means all.
    """

    handle: Handle
    tokens: bytes
    top_k: int = 0
    excluded: bytes = b""
    candidates: bytes | None = None


class RequestRows(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rows of one request; answered row by row in ``BatchResults``, in any order.

    ``deadline`` is on the system-wide monotonic clock, in seconds.
    """

    request_id: int
    deadline: float
    rows: list[Row]


class Predict(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """The requests that came to a worker in one turn of its loop.

    Those of another epoch are dropped without an answer: the worker sends them again after
    ``Welcome``.
    """

    epoch: int
    requests: list[RequestRows]


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The client left: rows of this request that still wait are dropped without an answer."""

    request_id: int


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A worker is here and knows this epoch (0: none)."""

    worker: str
    epoch: int


class TableAck(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """From now on this worker admits rows by table ``version`` or a newer one."""

    epoch: int
    version: int


class Validate(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Verify the spooled bundle file and run its probes; answered by ``Validated``.

    With ``store`` the bundle's bytes are then stored in the registry.
    """

    request_id: int
    path: str
    store: bool = False


class Sync(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Answer ``Synced`` when every worker of this replica serves registry ``revision``."""

    request_id: int
    revision: int


class Goodbye(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The worker has drained and leaves; nobody need wait for its acknowledgements."""

    worker: str


class VersionSeen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a worker saw of one version in one role since its last message, in rows.

    ``latencies``: rows by bucket (``service/predict/traffic_counts.py``). ``divergence`` is the
    sum over the
    ``compared`` rows that prod answered too.
    """

    digest: str
    role: str
    requests: int
    errors: int
    latencies: dict[int, int]
    compared: int
    divergence: float


class TrafficSeen(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """What a worker saw of one task's traffic, which is named by its revision; no answer."""

    tenant: str
    task: str
    traffic_revision: int
    versions: list[VersionSeen]


ToDevice = Predict | Cancel | Hello | TableAck | Validate | Sync | Goodbye | TrafficSeen


class BundleEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A resident bundle: what a worker needs to admit rows and to name results.

    ``catalog_path`` is the local bundle file a ranking head's item ids are read from.
    """

    handle: Handle
    digest: Digest
    kind: str
    outputs: int
    labels: tuple[str, ...]
    threshold: float
    catalog_path: str

    def shared(self) -> Self:
        """The same entry with parts shared with equal ones: a worker keeps ten thousands."""
        return msgspec.structs.replace(
            self,
            kind=shared(self.kind),
            labels=shared(self.labels),
            threshold=shared(self.threshold),
        )


class KeyEntry(msgspec.Struct, frozen=True, array_like=True):
    """An API key: only its sha256 (hex) leaves the registry."""

    key_id: str
    sha256: str
    tenant: str
    scopes: list[str]


class TableUpdate(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """A change of what is served; ``is_full`` replaces everything the worker knew.

    ``keys`` is None if unchanged. ``bundles`` are new residencies, ``tasks`` new or changed tasks.
    """

    epoch: int
    version: int
    revision: int
    is_full: bool
    bundles: list[BundleEntry]
    tasks: list[TaskEntry]
    removed_bundles: list[Digest]
    removed_tasks: list[TaskRef]
    keys: list[KeyEntry] | None = None


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Answer to a ``Hello`` of another epoch. ``is_ready``: warm and the registry read once."""

    epoch: int
    is_ready: bool
    table: TableUpdate


class RowResult(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One row's answer.

    ``values``: float32 scores, one per output, or the top-k's if the head ranks; ``indices``: the
    top-k's int64 catalog indices. ``error`` is a code, empty if the row was answered.
    """

    request_id: int
    row: int
    values: bytes
    indices: bytes = b""
    error: str = ""
    detail: str = ""


class BatchResults(msgspec.Struct, frozen=True, array_like=True, tag=22, gc=False):
    """The answers of one batch that belong to this worker; one message per batch and worker."""

    epoch: int
    compute_s: float
    rows: list[RowResult]


class ProofReason(msgspec.Struct, frozen=True, array_like=True):
    code: str
    message: str
    hint: str


class Validated(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """Outcome of ``Validate``: no reasons means that the bundle may be registered.

    ``summary`` is the JSON object that the registry keeps beside the version.
    """

    request_id: int
    digest: str
    size_bytes: int
    summary: bytes
    reasons: list[ProofReason]
    category: str = ""


class Synced(msgspec.Struct, frozen=True, array_like=True, tag=24):
    request_id: int
    revision: int


class Status(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """Sent to every worker each second: readiness and staleness, for ``/readyz``."""

    epoch: int
    is_ready: bool
    registry_revision: int
    registry_synced_at: float
    queued_rows: int


FromDevice = TableUpdate | Welcome | BatchResults | Validated | Synced | Status

to_device = msgspec.msgpack.Decoder(ToDevice)
from_device = msgspec.msgpack.Decoder(FromDevice)
encode = msgspec.msgpack.Encoder().encode
