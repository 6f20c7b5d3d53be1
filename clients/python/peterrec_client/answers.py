"""The server's answers as frozen types. Fields that a newer server adds are ignored."""

from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct

from peterrec_client.kinds.prediction import Prediction, Reason


class FailedInstance(Struct, frozen=True):
    """An instance that could not be answered. The other instances of the call are not affected."""

    error: Reason
    user_id: str | int | None = None


class UserPrediction(Struct, frozen=True):
    """One user's answers by task, all from one registry revision.

    ``errors`` has a reason for each task that could not be answered.
    """

    registry_revision: int
    request_id: str
    results: Mapping[str, Prediction]
    errors: Mapping[str, Reason]


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


class Backbone(Struct, frozen=True, kw_only=True):
    """The shared model of a server; a bundle must name this fingerprint."""

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

    @property
    def is_ready(self) -> bool:
        """True if the server is ready for requests."""
        return self.status == "ready"
