"""Changes of the registry in answers, and which callers may see them."""

from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel

from peterrec.patches.identity import Digest, format_digest
from peterrec.patches.registry.records import AliasTarget, RegistryEvent, TaskOptions
from peterrec.patches.registry.traffic import Observed, Traffic
from peterrec.service.http.auth import Principal
from peterrec.service.http.views.tasks import AliasView, GuardView


class AuditCanary(BaseModel):
    """A version that answered a share of the users."""

    digest: str
    weight: int


class AuditTraffic(BaseModel):
    """How requests were split."""

    prod_weight: int
    canary: list[AuditCanary]
    shadow: list[str]
    guard: GuardView | None

    @classmethod
    def of(cls, traffic: Traffic | None) -> "AuditTraffic | None":
        """Make the view of a traffic; None if prod answered alone."""
        if traffic is None:
            return None
        return cls(
            prod_weight=traffic.prod_weight,
            canary=[
                AuditCanary(digest=format_digest(each.digest), weight=each.weight)
                for each in traffic.canary
            ],
            shadow=[format_digest(digest) for digest in traffic.shadow],
            guard=None if traffic.guard is None else GuardView.of(traffic.guard),
        )


class ObservedView(BaseModel):
    """The figures of a version within the window of a guard."""

    digest: str
    requests: int
    errors: int
    p99_ms: float
    divergence: float | None
    hit_drop: float | None
    outcomes: int

    @classmethod
    def of(cls, observed: Observed | None) -> "ObservedView | None":
        """Make the view of the figures on which a guard acted; None if no guard acted."""
        if observed is None:
            return None
        return cls(
            digest=format_digest(observed.digest),
            requests=observed.requests,
            errors=observed.errors,
            p99_ms=observed.p99_ms,
            divergence=observed.divergence,
            hit_drop=observed.hit_drop,
            outcomes=observed.outcomes,
        )


class OptionsView(BaseModel):
    """The properties of a task that its owner sets."""

    description: str
    is_sensitive: bool

    @classmethod
    def of(cls, options: TaskOptions | None) -> "OptionsView | None":
        """Make the view of a task's options; None if the change did not touch them."""
        if options is None:
            return None
        return cls(description=options.description, is_sensitive=options.is_sensitive)


class AuditEntry(BaseModel):
    """One change: who made it, when, and the values before and after.

    Fields that do not concern the change are null.
    """

    revision: int
    action: str
    actor: str
    at: datetime
    tenant: str | None = None
    task: str | None = None
    alias: str | None = None
    previous: str | None = None
    current: str | None = None
    version: int | None = None
    key_id: str | None = None
    options: OptionsView | None = None
    previous_options: OptionsView | None = None
    aliases: dict[str, AliasView] | None = None
    previous_aliases: dict[str, AliasView] | None = None
    traffic: AuditTraffic | None = None
    previous_traffic: AuditTraffic | None = None
    reason: str | None = None
    observed: ObservedView | None = None
    note: str | None = None
    quotas: dict[str, int] | None = None
    weight: float | None = None

    @classmethod
    def of(cls, event: RegistryEvent) -> "AuditEntry":
        """Make the view of a change."""
        return cls(
            revision=event.revision,
            action=event.action,
            actor=event.actor,
            at=event.at,
            tenant=event.tenant,
            task=event.task,
            alias=event.alias,
            previous=_digest(event.previous),
            current=_digest(event.current),
            version=event.version,
            key_id=event.key_id,
            traffic=AuditTraffic.of(event.traffic),
            previous_traffic=AuditTraffic.of(event.previous_traffic),
            reason=event.reason,
            observed=ObservedView.of(event.observed),
            note=event.note,
            quotas=None if event.quotas is None else event.quotas.limits(),
            weight=event.weight,
            options=OptionsView.of(event.options),
            previous_options=OptionsView.of(event.previous_options),
            aliases=_aliases(event.aliases),
            previous_aliases=_aliases(event.previous_aliases),
        )


def entry_for(caller: Principal, event: RegistryEvent) -> AuditEntry | None:
    """Return a change as a caller may see it; None if it may not.

    A caller sees the changes of what it may administer. An operator sees those of all tenants and
    their keys, but not of their tasks. Everybody sees that an archive was imported, which has no
    tenant, but only an operator sees how much.
    """
    if event.tenant is None:
        entry = AuditEntry.of(event)
        return entry if caller.is_operator else entry.model_copy(update={"note": None})
    is_own = event.tenant == caller.tenant
    if event.task is None:
        is_visible = caller.is_operator or (is_own and caller.may_everywhere("admin"))
    else:
        is_visible = is_own and caller.may("admin", event.task)
    return AuditEntry.of(event) if is_visible else None


def _digest(digest: Digest | None) -> str | None:
    return None if digest is None else format_digest(digest)


def _aliases(aliases: Mapping[str, AliasTarget] | None) -> dict[str, AliasView] | None:
    if aliases is None:
        return None
    return {alias: AliasView.of(target) for alias, target in aliases.items()}
