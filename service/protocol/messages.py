"""Messages between HTTP workers and the device process, as msgpack over a unix socket.

Workers connect to the device process's ``Listener``. A worker sends ``Hello`` on connecting and
every second after; when it hangs up, nothing waits for it any more. The device process answers
``Welcome`` with the whole table if the worker does not know its *epoch*, a number that each start
of the device process takes anew. The structs are encoded as arrays, so new fields go last and have
defaults.
"""

from collections.abc import Sequence
from typing import Self

import msgspec

from peterrec.patches.identity import Digest, TaskRef
from peterrec.patches.interning import shared
from peterrec.patches.registry.records import Position, TaskEntry
from peterrec.service.protocol.quota_table import ServedTenant
from peterrec.service.protocol.sender import NOBODY, Sender

Handle = int
"""Names one residency of one bundle on the device; never used twice within an epoch."""

PLAIN: Handle = 0
"""Names the first backbone without a patch; further ones have the numbers below, by ``plain``."""


def plain(place: int) -> Handle:
    """Return what names a backbone without a patch, by its place among those of the device."""
    return PLAIN - place


ITEM_BYTES = 4
"""Bytes of a token id."""

ITEMS_PER_ROW = 500
"""Older items that take as much room in the queue as a row: some kilobytes, as a row has."""


VECTOR = -1
"""Stands for ``top_k`` in a row that asks for the user vector."""

BYTES_PER_PLACE = 8192
"""Bytes of a filter that take as much room in the queue as a row: 65,536 items of a catalog."""


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One history for one bundle.

    ``tokens`` are int32 token ids, oldest first, at most ``max_len``, without [CLS]. ``excluded``
    and ``candidates`` are int64 catalog indices of a ranking head; None for candidates means all.
    ``older`` are the tokens before ``tokens``; it is empty unless the bundle has an item table.
    ``allowed`` has a bit for each item of the catalog, the lowest of the first byte first: only
    items whose bit is set may be answered; empty means all. With ``VECTOR`` as ``top_k`` the result
    is the user vector; the handle ``PLAIN`` and those below stand for backbones without a patch.

    ``is_raw`` and ``left_out`` are for explanations. With ``is_raw`` the result has the network's
    logits, without a table's, instead of scores, and nothing is cached for the history. With
    ``left_out``, int32 tokens, it has what the table adds to the logits, float32 [1 + tokens, K]:
    for the whole
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
    allowed: bytes = b""


class OlderTokens(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The older tokens of some rows of a request, by their numbers."""

    tokens: bytes
    rows: list[int]


class AllowedItems(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The items that some rows of a request may be answered with, as bits."""

    bits: bytes
    rows: list[int]


class RequestRows(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rows of one request; ``BatchResults`` answer them row by row, in any order.

    ``deadline`` is in seconds on the system-wide monotonic clock. Rows of one user have equal older
    tokens, up to 40 KB, and rows of one filter equal bits: the message has them once, in ``older``
    and ``allowed`` instead of ``rows``. ``sent_at`` is on the same clock, and 0 if nobody asks
    where the time of the request went.
    """

    request_id: int
    deadline: float
    rows: list[Row]
    older: list[OlderTokens] = []
    sender: Sender = NOBODY
    allowed: list[AllowedItems] = []
    sent_at: float = 0.0

    @classmethod
    def of(
        cls,
        request_id: int,
        deadline: float,
        rows: Sequence[Row],
        sender: Sender = NOBODY,
        sent_at: float = 0.0,
    ) -> Self:
        """Take what rows share out of them."""
        if not [row for row in rows if row.older or row.allowed]:
            return cls(request_id, deadline, [*rows], [], sender, [], sent_at)
        older: dict[int, OlderTokens] = {}
        allowed: dict[int, AllowedItems] = {}
        for number, row in enumerate(rows):
            if row.older:
                older.setdefault(id(row.older), OlderTokens(row.older, [])).rows.append(number)
            if row.allowed:
                bits = row.allowed
                allowed.setdefault(id(bits), AllowedItems(bits, [])).rows.append(number)
        bare = [
            msgspec.structs.replace(row, older=b"", allowed=b"")
            if row.older or row.allowed
            else row
            for row in rows
        ]
        parts = [*older.values()], sender, [*allowed.values()]
        return cls(request_id, deadline, bare, *parts, sent_at)

    def whole_rows(self) -> list[Row]:
        """The rows with what they share."""
        if not self.older and not self.allowed:
            return self.rows
        rows = [*self.rows]
        for older in self.older:
            for number in older.rows:
                rows[number] = msgspec.structs.replace(rows[number], older=older.tokens)
        for each in self.allowed:
            for number in each.rows:
                rows[number] = msgspec.structs.replace(rows[number], allowed=each.bits)
        return rows


def places_of(rows: Sequence[Row]) -> int:
    """Places in the queue that rows take: one each, and more for long histories and large filters.

    Rows that share these take their places once.
    """
    large = [row for row in rows if row.older or row.allowed]
    if not large:
        return len(rows)
    older = {id(row.older): row.older for row in large}
    allowed = {id(row.allowed): row.allowed for row in large}
    places = len(rows) + sum(map(older_places, older.values()))
    return places + sum(map(filter_places, allowed.values()))


def filter_places(allowed: bytes) -> int:
    """Places in the queue that the bits of a filter take; those of small catalogs take none."""
    return len(allowed) // BYTES_PER_PLACE


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
    """What a worker saw of one task's traffic, which its revision names. Has no answer.

    Without ``versions``, outcomes of it were told, which the registry has.
    """

    tenant: str
    task: str
    traffic_revision: int
    versions: list[VersionSeen]


class Profile(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Record for some seconds what the device computes, into a file; answered by ``Profiled``."""

    request_id: int
    path: str
    seconds: int


ToDevice = Predict | Cancel | Hello | TableAck | Validate | Sync | TrafficSeen | Profile


class BundleEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A resident bundle: what a worker needs to bind rows and to name results.

    ``catalog_path`` is the local bundle file that a ranking head's item ids are read from;
    ``scale`` and ``shift`` are those of a value's ``ValueScale``; ``unit`` may be empty.
    ``has_table`` means that rows need the whole history, as an item table reads it. ``reach`` is
    the number of newest items that the network reads; None means ``max_len``. ``titles`` are the
    labels' display names, empty if there are none. ``prior`` is an encoded ``AnswerPrior``,
    or empty. ``backbone`` is the place of its backbone among those of the server.
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
    titles: tuple[str, ...] = ()
    prior: bytes = b""
    backbone: int = 0

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
            titles=shared(self.titles),
        )


class KeyEntry(msgspec.Struct, frozen=True, array_like=True):
    """One secret of an API key. The registry gives out its sha256 (hex) only.

    ``number`` tells the secrets of a key apart. ``expires_at`` is the Unix time from which it is
    refused; 0 means never.
    """

    key_id: str
    sha256: str
    tenant: str
    scopes: list[str]
    number: int = 1
    expires_at: float = 0.0


class RefusedBundle(msgspec.Struct, frozen=True, array_like=True):
    """A bundle that this server will never load, and why: the first few codes and messages."""

    digest: Digest
    reason: str
    codes: list[str] = []


class UnfitBundle(msgspec.Struct, frozen=True, array_like=True):
    """A version that `prod` of a task names and that this server refuses."""

    tenant: str
    task: str
    version: int
    digest: Digest
    codes: list[str]


class BackboneMemory(msgspec.Struct, frozen=True, array_like=True):
    """The device memory of one backbone in bytes: its own, and that of its bundles."""

    backbone_bytes: int
    patch_bytes: int
    head_bytes: int
    bundles: int


class ProdBundles(msgspec.Struct, frozen=True, array_like=True):
    """How many tasks have a `prod`, how many of them are answered, and how many never will be.

    A task whose new version is refused is ``answering`` as long as the version before it is here.
    ``unfit`` counts tasks that nothing answers since their bundle is refused, ``some`` names the
    first few of them. The others are being loaded, or are to be tried again.
    """

    registered: int = 0
    answering: int = 0
    unfit: int = 0
    some: list[UnfitBundle] = []


class TableUpdate(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """A change of what is served; ``is_full`` replaces everything the worker knew.

    ``keys`` and ``tenants`` are None if unchanged. ``bundles`` are new residencies, ``tasks`` new
    or changed tasks. ``refused`` are all bundles that tasks name in vain; None if unchanged.
    ``weights`` are those of tenants whose weight is not 1; None if unchanged.
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
    tenants: list[ServedTenant] | None = None
    weights: dict[str, float] | None = None


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Answer to a ``Hello`` of another epoch.

    ``is_ready`` means that the device is warm and has loaded what the registry names. ``unready``
    is a reason for which the server is not ready all the same, or empty, by ``prod``.
    """

    epoch: int
    is_ready: bool
    table: TableUpdate
    unready: str = ""
    prod: ProdBundles = ProdBundles()


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


class BatchTimes(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """When a batch ran, on the system-wide monotonic clock, and why it did not run earlier.

    ``number`` counts the batches of the epoch. ``held_s`` are the seconds, since the oldest of its
    rows with a ``sent_at`` was sent, in which the device thread did something else, by its kind
    (``device/holdups.py``).
    ``head_waits`` are the seconds that rows waited for their heads, by their places in ``rows``.
    """

    number: int
    started_at: float
    duration_s: float
    rows: int
    distinct_bundles: int
    held_s: dict[str, float] = {}
    head_waits: dict[int, float] = {}

    @property
    def ended_at(self) -> float:
        """When the batch ended."""
        return self.started_at + self.duration_s


class BatchResults(msgspec.Struct, frozen=True, array_like=True, tag=22, gc=False):
    """The answers of one batch that belong to this worker; one message per batch and worker.

    ``queued_rows`` places of the queue are taken after it. ``times`` is None for rows that were
    refused, and if no row of the batch has a ``sent_at``.
    """

    epoch: int
    rows: list[RowResult]
    queued_rows: int = 0
    times: BatchTimes | None = None


class ProofReason(msgspec.Struct, frozen=True, array_like=True):
    code: str
    message: str
    hint: str


class Probed(msgspec.Struct, frozen=True, array_like=True):
    """How many probes of a bundle ran, their largest error, and the largest that is allowed.

    Errors of logits are relative to what each output can reach.
    """

    count: int
    largest_error: float
    tolerance: float


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
    probes: Probed | None = None


class Synced(msgspec.Struct, frozen=True, array_like=True, tag=24):
    request_id: int
    revision: int


class Profiled(msgspec.Struct, frozen=True, array_like=True, tag=26):
    """The file of a ``Profile`` is written, or ``problem`` says why not."""

    request_id: int
    problem: str = ""


class Status(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """Sent to every worker each second; ``/readyz`` shows its readiness and staleness.

    ``position`` is what is known of the registry, and ``loss`` says what Redis has lost of it.
    ``unready`` and ``prod`` are as in ``Welcome``. ``memory`` has an entry for each backbone.
    """

    epoch: int
    is_ready: bool
    registry_revision: int
    registry_synced_at: float
    queued_rows: int
    position: Position = Position(0, "")
    loss: str = ""
    unready: str = ""
    prod: ProdBundles = ProdBundles()
    memory: list[BackboneMemory] = []


FromDevice = TableUpdate | Welcome | BatchResults | Validated | Synced | Profiled | Status

to_device = msgspec.msgpack.Decoder(ToDevice)
from_device = msgspec.msgpack.Decoder(FromDevice)
encode = msgspec.msgpack.Encoder().encode
