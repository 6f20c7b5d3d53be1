"""Messages between HTTP workers and the device process, as msgpack over a unix socket.

Workers are zmq DEALERs, the device process is a ROUTER. A worker's zmq message has one of these
messages in each frame: all that the worker had to send in one turn of its loop. A worker sends
``Hello`` on connecting and every second after. The device process answers ``Welcome`` with the
whole table if the worker does not know its *epoch*, a number that each start of the device process
takes anew. The structs are encoded as arrays, so new fields go last and have defaults.
"""

from collections.abc import Sequence
from typing import Self

import msgspec

from peterrec.patches.identity import Digest, TaskRef
from peterrec.patches.interning import shared
from peterrec.patches.registry.records import TaskEntry

Handle = int
"""Names one residency of one bundle on the device; never used twice within an epoch."""


ITEM_BYTES = 4
"""Bytes of a token id."""

ITEMS_PER_ROW = 500
"""Older items that take as much room in the queue as a row: some kilobytes, as a row has."""


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One history for one bundle.

    ``tokens`` are int32 token ids, oldest first, at most ``max_len``, without [CLS]. ``excluded``
    and ``candidates`` are int64 catalog indices of a ranking head; None for candidates means all.
    ``older`` are the tokens before ``tokens``; it is empty unless the bundle has an item table.

    The last two are for explanations. With ``is_raw`` the result has the network's logits, without
    a table's, instead of scores, and nothing is cached for the history. With ``left_out``, int32
    tokens, it has what the table adds to the logits, float32 [1 + tokens, K]: for the whole
    history, and for it without each of the tokens.
    """

    handle: Handle
    tokens: bytes
    top_k: int = 0
    excluded: bytes = b""
    candidates: bytes | None = None
    older: bytes = b""
    is_raw: bool = False
    left_out: bytes | None = None


class OlderTokens(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The older tokens of some rows of a request, by their numbers."""

    tokens: bytes
    rows: list[int]


class RequestRows(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rows of one request; ``BatchResults`` answer them row by row, in any order.

    ``deadline`` is in seconds on the system-wide monotonic clock. Rows of one user have equal older
    tokens, up to 40 KB: the message has them once, in ``older`` instead of ``rows``.
    """

    request_id: int
    deadline: float
    rows: list[Row]
    older: list[OlderTokens] = []

    @classmethod
    def of(cls, request_id: int, deadline: float, rows: Sequence[Row]) -> Self:
        """Take the older tokens out of the rows."""
        if not any(row.older for row in rows):
            return cls(request_id, deadline, [*rows])
        found: dict[int, OlderTokens] = {}
        for number, row in enumerate(rows):
            if row.older:
                found.setdefault(id(row.older), OlderTokens(row.older, [])).rows.append(number)
        bare = [msgspec.structs.replace(row, older=b"") if row.older else row for row in rows]
        return cls(request_id, deadline, bare, [*found.values()])

    def whole_rows(self) -> list[Row]:
        """The rows with their older tokens, which they share."""
        if not self.older:
            return self.rows
        rows = [*self.rows]
        for older in self.older:
            for number in older.rows:
                rows[number] = msgspec.structs.replace(rows[number], older=older.tokens)
        return rows


def places_of(rows: Sequence[Row]) -> int:
    """Places in the queue that rows take: one each, and one per ``ITEMS_PER_ROW`` older items.

    Rows that share their older tokens take the places of these once.
    """
    older = {id(row.older): row.older for row in rows if row.older}
    return len(rows) + sum(map(older_places, older.values()))


def older_places(older: bytes) -> int:
    """Places in the queue that older tokens take."""
    return -(-len(older) // (ITEMS_PER_ROW * ITEM_BYTES))


class Predict(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """The requests that reached a worker in one turn of its loop.

    If they are of another epoch they are dropped without an answer: the worker sends them again
    after ``Welcome``.
    """

    epoch: int
    requests: list[RequestRows]


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The client left: rows of this request that still wait are dropped without an answer."""

    request_id: int


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A worker is connected and knows this epoch; 0 if it knows none."""

    worker: str
    epoch: int


class TableAck(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """From now on this worker binds rows by table ``version`` or a newer one."""

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
    """The worker has drained and leaves; its acknowledgements are no longer waited for."""

    worker: str


class VersionSeen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a worker saw of one version in one role since its last message, in rows.

    ``latencies`` are rows by bucket (``service/protocol/tally.py``). ``divergence`` is the sum over
    the ``compared`` rows, which prod answered too.
    """

    digest: str
    role: str
    requests: int
    errors: int
    latencies: dict[int, int]
    compared: int
    divergence: float


class TrafficSeen(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """What a worker saw of one task's traffic, which its revision names. Has no answer."""

    tenant: str
    task: str
    traffic_revision: int
    versions: list[VersionSeen]


ToDevice = Predict | Cancel | Hello | TableAck | Validate | Sync | Goodbye | TrafficSeen


class BundleEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A resident bundle: what a worker needs to bind rows and to name results.

    ``catalog_path`` is the local bundle file that a ranking head's item ids are read from;
    ``scale`` and ``shift`` are those of a value's ``ValueScale``; ``unit`` may be empty.
    ``has_table`` means that rows need the whole history, as an item table reads it. ``reach`` is
    the number of newest items that the network reads; None means ``max_len``.
    """

    handle: Handle
    digest: Digest
    kind: str
    outputs: int
    labels: tuple[str, ...]
    threshold: float
    catalog_path: str
    scale: float = 1.0
    shift: float = 0.0
    unit: str = ""
    has_table: bool = False
    reach: int | None = None

    def shared(self) -> Self:
        """Return an equal entry that shares its texts with other entries.

        A worker keeps tens of thousands of entries.
        """
        return msgspec.structs.replace(
            self,
            kind=shared(self.kind),
            labels=shared(self.labels),
            threshold=shared(self.threshold),
            scale=shared(self.scale),
            shift=shared(self.shift),
            unit=shared(self.unit),
            reach=shared(self.reach),
        )


class KeyEntry(msgspec.Struct, frozen=True, array_like=True):
    """An API key. The registry gives out its sha256 (hex) only."""

    key_id: str
    sha256: str
    tenant: str
    scopes: list[str]


class RefusedBundle(msgspec.Struct, frozen=True, array_like=True):
    """A bundle that this server will never load, and why: the first few codes and messages."""

    digest: Digest
    reason: str


class TableUpdate(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """A change of what is served; ``is_full`` replaces everything the worker knew.

    ``keys`` is None if unchanged. ``bundles`` are new residencies, ``tasks`` new or changed tasks.
    ``refused`` are all bundles that tasks name in vain; None if unchanged.
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
    refused: list[RefusedBundle] | None = None


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Answer to a ``Hello`` of another epoch.

    ``is_ready`` means that the device is warm and has loaded what the registry names.
    """

    epoch: int
    is_ready: bool
    table: TableUpdate


class RowResult(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to one row.

    ``values`` are float32 scores or logits: one per output, or those of the top k if the head
    ranks; then ``indices`` are the int64 catalog indices of the top k. ``error`` is a code, or
    empty if the row was answered.
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
    rows: list[RowResult]


class ProofReason(msgspec.Struct, frozen=True, array_like=True):
    code: str
    message: str
    hint: str


class Validated(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """Outcome of ``Validate``: without reasons against it, the bundle may be registered.

    ``summary`` is the JSON object that the registry keeps with the version.
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
    """Sent to every worker each second; ``/readyz`` shows its readiness and staleness."""

    epoch: int
    is_ready: bool
    registry_revision: int
    registry_synced_at: float
    queued_rows: int


FromDevice = TableUpdate | Welcome | BatchResults | Validated | Synced | Status

to_device = msgspec.msgpack.Decoder(ToDevice)
from_device = msgspec.msgpack.Decoder(FromDevice)
encode = msgspec.msgpack.Encoder().encode
