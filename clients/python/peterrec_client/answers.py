"""The server's answers as frozen types. Fields that a newer server adds are ignored."""

from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct

from peterrec_client.errors import PeterRecError, refused
from peterrec_client.kinds.prediction import Prediction, Reason


class FailedInstance(Struct, frozen=True):
    """An instance that could not be answered. The other instances of the call are not affected.

    ``line`` is its number in a stream, from 1.
    """

    error: Reason
    user_id: str | int | None = None
    line: int | None = None

    @property
    def exception(self) -> PeterRecError:
        """What a call for this instance alone would have raised."""
        return refused(self.error)


class FeedbackCounted(Struct, frozen=True):
    """How many outcomes were counted.

    ``repeated``: of predictions of which one was told before. ``unknown``: of users of whom no
    answer is remembered. ``hit_rate`` is how right the answers of each version were in this call,
    from 0 to 1; None for numbers.
    """

    task: str
    counted: int
    repeated: int
    unknown: int
    hit_rate: dict[str, float | None]


class Availability(Struct, frozen=True):
    """Which of a task's items are to be had. ``mode`` is None if there is no list: all are.

    ``items`` are those that are ``unavailable``, or the only ones that are ``available``.
    ``revision`` may be given as ``if_revision`` to a change.
    """

    task: str
    revision: int
    mode: str | None
    count: int
    items: tuple[str, ...]


class AvailabilityChanged(Struct, frozen=True):
    """The list after a change, which every worker of the replica that answered serves.

    ``unknown`` of its items are not in the catalog that answers now, and ``unknown_items`` has the
    first ten of these; None if nothing answers yet. They stay in the list.
    """

    task: str
    registry_revision: int
    mode: str | None
    count: int
    unknown: int | None = None
    unknown_items: tuple[str, ...] = ()


class UserVector(Struct, frozen=True):
    """What the backbone makes of one history, as the bytes of numbers in ``UserVectors.dtype``."""

    data: bytes
    used_items: int
    unknown_items: int
    truncated: bool
    cold: bool


class UserVectors(Struct, frozen=True):
    """User vectors in the order of the histories, each ``dimensions`` numbers of type ``dtype``.

    ``numpy.frombuffer(vector.data, vectors.dtype)`` is one of them. Vectors can be compared if
    ``backbone`` (a fingerprint) is the same and, where a task was named, ``digest``.
    """

    backbone: str
    dimensions: int
    dtype: str
    registry_revision: int
    request_id: str
    vectors: tuple[UserVector | FailedInstance, ...]
    task: str | None = None
    version: int | None = None
    digest: str | None = None


class UserPrediction(Struct, frozen=True):
    """One user's answers by task, all from one registry revision.

    ``errors`` has a reason for each task that could not be answered. The answers of a stream do not
    say the revision, but the ``user_id`` of the line.
    """

    registry_revision: int | None
    request_id: str
    results: Mapping[str, Prediction]
    errors: Mapping[str, Reason]
    user_id: str | int | None = None


class Alias(Struct, frozen=True):
    """The version that an alias names."""

    version: int
    digest: str


class BundleSummary(Struct, frozen=True, kw_only=True):
    """The main facts from a bundle's manifest."""

    name: str
    kind: str
    outputs: int
    backbone: str
    size_bytes: int
    patch_bytes: int
    head_bytes: int
    metrics: Mapping[str, float]


class TrafficVersion(Struct, frozen=True):
    """A version that takes part in a task's traffic."""

    version: int | None
    digest: str


class Canary(TrafficVersion, frozen=True):
    """A version that answers a share of the users: its weight divided by the sum of all weights."""

    weight: int


class Traffic(Struct, frozen=True, kw_only=True):
    """The versions that take part in a task's traffic in addition to the one that ``prod`` names.

    A canary answers a share of the users. A shadow computes every answer, but none is returned.
    """

    prod_weight: int
    canary: tuple[Canary, ...]
    shadow: tuple[TrafficVersion, ...]
    guard: Mapping[str, float | None] | None


class Version(BundleSummary, frozen=True, kw_only=True):
    """One registered bundle of a task."""

    version: int
    digest: str
    created_at: datetime
    actor: str
    signed_by: tuple[str, ...] = ()


class Task(Struct, frozen=True, kw_only=True):
    """A registered task. ``if_revision`` of a change is compared with its ``revision``."""

    task: str
    tenant: str
    revision: int
    description: str
    is_sensitive: bool
    aliases: Mapping[str, Alias]
    created_at: datetime
    updated_at: datetime
    traffic: Traffic | None = None


class TaskDetail(Task, frozen=True, kw_only=True):
    """A task with its versions, oldest first.

    ``served`` has the aliases by version number as the answering replica serves them.
    """

    versions: tuple[Version, ...]
    served: Mapping[str, int] = {}


class Pushed(Struct, frozen=True, kw_only=True):
    """A bundle that was validated on the serving device.

    After ``validate_only``, ``version`` and ``registry_revision`` are None: nothing was registered.
    """

    task: str
    digest: str
    alias: str | None
    version: int | None
    registry_revision: int | None
    summary: BundleSummary


class Changed(Struct, frozen=True, kw_only=True):
    """A change that the answering replica serves already; other replicas follow."""

    task: str
    registry_revision: int


class AliasMoved(Changed, frozen=True, kw_only=True):
    """Where an alias points now; ``previous`` is the digest that it named before.

    ``is_served`` is False if the replica has not loaded the version and answers by the one before.
    """

    alias: str
    version: int
    digest: str
    previous: str | None
    is_served: bool = True


class RolledBack(AliasMoved, frozen=True, kw_only=True):
    """The whole state that was restored, and where the requested alias points now.

    ``new_outputs`` lists how that version's answers differ from those before in kind, labels,
    catalog or unit.
    """

    aliases: Mapping[str, Alias]
    traffic: Traffic | None
    new_outputs: tuple[str, ...] = ()


class Tenant(Struct, frozen=True, kw_only=True):
    """A tenant with the quotas that it has; a quota that is missing or None is no bound.

    ``if_revision`` of a change is compared with its ``revision``.
    """

    tenant: str
    revision: int
    description: str
    quotas: Mapping[str, int | None]
    weight: float = 1.0
    created_at: datetime | None = None
    updated_at: datetime | None = None


class TenantPut(Struct, frozen=True, kw_only=True):
    """A tenant that was created or changed."""

    tenant: str
    registry_revision: int


class Erased(Struct, frozen=True, kw_only=True):
    """How many of each were removed with a tenant."""

    tasks: int
    versions: int
    keys: int
    bundles: int


class TenantDeleted(TenantPut, frozen=True, kw_only=True):
    """A tenant that was deleted, and what was erased with it."""

    erased: Erased


class Amount(Struct, frozen=True, kw_only=True):
    """What is used, and the quota; None means that there is no bound."""

    used: int
    limit: int | None = None


class Rate(Struct, frozen=True, kw_only=True):
    """What all replicas have seen lately, and the quota.

    ``used`` is None for a tenant without quotas for requests, of which nothing is counted.
    """

    used: float | None = None
    limit: int | None = None


class TenantUsage(Struct, frozen=True, kw_only=True):
    """What a tenant uses of its quotas; ``administration_per_s`` are calls but predictions."""

    tenant: str
    tasks: Amount
    versions: Amount
    bundle_bytes: Amount
    head_bytes: Amount
    patch_bytes: Amount
    keys: Amount
    requests_per_s: Rate = Rate()
    administration_per_s: Rate = Rate()
    rows_per_s: Rate = Rate()
    waiting_rows: Rate = Rate()
    streams: Rate = Rate()


class KeySecret(Struct, frozen=True, kw_only=True):
    """A secret of a key, which is refused from ``expires_at`` on."""

    number: int
    expires_at: datetime | None = None
    last_used_at: datetime | None = None


class Key(Struct, frozen=True, kw_only=True):
    """An API key without its secrets; ``secrets`` tells of them, the newest first."""

    key_id: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    secrets: tuple[KeySecret, ...] = ()


class NewKey(Key, frozen=True, kw_only=True):
    """A key with its newest secret, which the server shows only once."""

    api_key: str

    def __repr__(self) -> str:
        """Leave the secret out, so that no log has it by accident."""
        return f"NewKey(key_id={self.key_id!r}, name={self.name!r}, tenant={self.tenant!r})"


class KeyRevoked(Struct, frozen=True, kw_only=True):
    """A key, or one of its secrets, that the answering replica refuses already."""

    key_id: str
    registry_revision: int


class BackboneMemory(Struct, frozen=True, kw_only=True):
    """The device memory of a backbone in bytes: its own weights, and those of its bundles."""

    backbone_bytes: int
    patch_bytes: int
    head_bytes: int
    bundles: int


class Backbone(Struct, frozen=True, kw_only=True):
    """The shared model of a server; a bundle must name this fingerprint.

    ``others`` are further backbones of the server; a bundle may be for one of these instead.
    """

    fingerprint: str
    item_count: int
    vocabulary_digest: str
    channels: int
    dilations: tuple[int, ...]
    kernel_size: int
    is_causal: bool
    padding: str
    max_len: int
    special_tokens: Mapping[str, int]
    memory: BackboneMemory | None = None
    others: "tuple[Backbone, ...]" = ()


class ProdBundles(Struct, frozen=True, kw_only=True):
    """How many tasks have a `prod`, how many are answered, and how many never will be.

    A server answers none of the ``unfit`` ones, since it refuses their bundles.
    """

    registered: int = 0
    answering: int = 0
    unfit: int = 0


class Readiness(Struct, frozen=True, kw_only=True):
    """Whether a server is ready for requests.

    ``registry_synced_at`` is when it last read the registry (Unix time), and ``registry_stale_s``
    how many seconds ago that was.
    """

    status: str
    reasons: tuple[str, ...]
    registry_revision: int
    registry_synced_at: float | None = None
    registry_stale_s: float | None = None
    prod_bundles: ProdBundles = ProdBundles()

    @property
    def is_ready(self) -> bool:
        """True if the server is ready for requests."""
        return self.status == "ready"
