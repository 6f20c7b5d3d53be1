"""Tenants: made, bounded and deleted by an operator; a tenant's admin reads the own one only."""

from contextlib import suppress
from dataclasses import asdict, fields
from datetime import datetime

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import TenantNotFound
from peterrec.patches.identity import TenantId, parse_tenant
from peterrec.patches.registry.records import (
    LEAST_WEIGHT,
    MAX_QUOTA,
    MOST_WEIGHT,
    Quotas,
    TenantOptions,
    TenantRecord,
)
from peterrec.patches.registry.shares import Use
from peterrec.service.http.auth import Principal
from peterrec.service.http.context import (
    Caller,
    ClosedModel,
    Context,
    IfMatch,
    IfNoneMatch,
    expected_revision,
    set_etag,
)

router = APIRouter(prefix="/tenants", tags=["tenants"])


class QuotasBody(ClosedModel):
    """The most that a tenant may have; null means that there is no bound."""

    tasks: int | None = Field(None, ge=0, le=MAX_QUOTA)
    versions: int | None = Field(None, ge=0, le=MAX_QUOTA, description="Of all tasks together.")
    bundle_bytes: int | None = Field(
        None, ge=0, le=MAX_QUOTA, description="Bytes of all versions together."
    )
    head_bytes: int | None = Field(
        None, ge=0, le=MAX_QUOTA, description="Bytes of the heads of all versions together."
    )
    patch_bytes: int | None = Field(
        None, ge=0, le=MAX_QUOTA, description="Bytes of the patches of all versions together."
    )
    keys: int | None = Field(None, ge=0, le=MAX_QUOTA)
    outputs: int | None = Field(None, ge=0, le=MAX_QUOTA, description="Of each bundle.")
    row_work: int | None = Field(
        None,
        ge=0,
        le=MAX_QUOTA,
        description="Of each bundle: what its longest history takes, in positions of the backbone.",
    )
    answer_bytes: int | None = Field(
        None, ge=0, le=MAX_QUOTA, description="Of each bundle: bytes of its largest answer."
    )
    requests_per_s: int | None = Field(
        None,
        ge=1,
        le=MAX_QUOTA,
        description="Predictions per second and, separately, other calls per second, on all "
        "replicas together.",
    )
    rows_per_s: int | None = Field(
        None,
        ge=1,
        le=MAX_QUOTA,
        description="Rows per second, on all replicas together: a history for a task is a row.",
    )
    waiting_rows: int | None = Field(
        None, ge=0, le=MAX_QUOTA, description="Rows that are not answered yet, at the same time."
    )
    streams: int | None = Field(
        None,
        ge=0,
        le=MAX_QUOTA,
        description="Open streams of changes and of the audit trail, at the same time.",
    )


class TenantRequest(ClosedModel):
    """The properties of a tenant that an operator sets."""

    description: str = Field("", max_length=4096)
    quotas: QuotasBody = QuotasBody()
    weight: float = Field(
        1.0,
        ge=LEAST_WEIGHT,
        le=MOST_WEIGHT,
        description="While several tenants wait for the device, each gets a part of it in "
        "proportion to its weight.",
    )


class TenantView(BaseModel):
    """A tenant; ``revision`` is its ETag. Times are null for one that was never put."""

    tenant: str
    revision: int
    description: str
    quotas: QuotasBody
    weight: float
    created_at: datetime | None
    updated_at: datetime | None


class TenantPutView(BaseModel):
    """A tenant that was created or changed."""

    tenant: str
    registry_revision: int


class ErasedView(BaseModel):
    """How many of each were removed with a tenant; bundles that others name stay."""

    tasks: int
    versions: int
    keys: int
    bundles: int


class TenantDeletedView(TenantPutView):
    """A tenant that was deleted, and what was erased with it."""

    erased: ErasedView


class AmountView(BaseModel):
    """What is used, and the quota; null means that there is no bound."""

    used: int
    limit: int | None


class RateView(BaseModel):
    """What all replicas together have seen lately, and the quota.

    ``used`` is null for a tenant that has no quota for requests, since nothing is counted then.
    """

    used: float | None
    limit: int | None


class UsageView(BaseModel):
    """What a tenant uses of its quotas.

    Rates are means of about the last two seconds: of what was admitted, not of what was refused.
    ``administration_per_s`` are the calls other than predictions.
    """

    tenant: str
    tasks: AmountView
    versions: AmountView
    bundle_bytes: AmountView
    head_bytes: AmountView
    patch_bytes: AmountView
    keys: AmountView
    requests_per_s: RateView
    administration_per_s: RateView
    rows_per_s: RateView
    waiting_rows: RateView
    streams: RateView


@router.get("")
async def list_tenants(caller: Caller, context: Context) -> list[TenantView]:
    """List all tenants by name; a tenant's admin sees the own one only."""
    tenants = context.registry.tenants
    if caller.is_operator:
        return [_view(record) for record in await tenants.list()]
    return [_view(await tenants.get(readable(caller, caller.tenant)))]


@router.get("/{tenant}")
async def get_tenant(
    caller: Caller, context: Context, tenant: str, response: Response
) -> TenantView:
    """Return a tenant's description and quotas."""
    record = await context.registry.tenants.get(readable(caller, tenant))
    set_etag(response, record.revision)
    return _view(record)


@router.put("/{tenant}", responses={201: {"model": TenantPutView, "description": "Created."}})
async def put_tenant(
    caller: Caller,
    context: Context,
    tenant: str,
    body: TenantRequest,
    response: Response,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> TenantPutView:
    """Create a tenant, or replace the description, weight and all quotas of an existing one.

    A quota below what the tenant has already only prevents more.
    """
    caller.require_operator()
    name = parse_tenant(tenant)
    options = TenantOptions(body.description, Quotas(**body.quotas.model_dump()), body.weight)
    expected = expected_revision(if_match, if_none_match)
    put = await context.registry.tenants.put(name, options, caller.key_id, expected)
    await context.wait_until_served(put.revision)
    response.status_code = 201 if put.was_created else 200
    set_etag(response, put.revision)
    return TenantPutView(tenant=name, registry_revision=put.revision)


@router.delete("/{tenant}")
async def delete_tenant(caller: Caller, context: Context, tenant: str) -> TenantDeletedView:
    """Erase a tenant: its tasks, keys, and all bundles that no other tenant names.

    When the answer arrives, its keys are refused here. Every replica removes its own copies of the
    bundles within seconds. The audit trail keeps what the tenant did.
    """
    caller.require_operator()
    name, registry = parse_tenant(tenant), context.registry
    deleted = await registry.tenants.delete(name, caller.key_id)
    await context.wait_until_served(deleted.revision)
    with suppress(PeterRecError):  # the tenant is gone, and each replica collects every hour
        await registry.blobs.collect(dry_run=False)
    return TenantDeletedView(
        tenant=name,
        registry_revision=deleted.revision,
        erased=ErasedView(**deleted.erased._asdict()),
    )


@router.get("/{tenant}/usage")
async def get_usage(caller: Caller, context: Context, tenant: str) -> UsageView:
    """Return what a tenant uses of each of its quotas."""
    registry = context.registry
    record = await registry.tenants.get(readable(caller, tenant))
    quotas = record.options.quotas
    use = await registry.shares.use_of(record.tenant) if quotas.bounds_requests else None
    limits = {**asdict(quotas), "administration_per_s": quotas.requests_per_s}
    amounts = {
        name: AmountView(used=used, limit=limits[name])
        for name, used in asdict(record.usage).items()
    }
    rates = {
        field.name: RateView(
            used=None if use is None else round(getattr(use, field.name), 2),
            limit=limits[field.name],
        )
        for field in fields(Use)
    }
    return UsageView(tenant=record.tenant, **amounts, **rates)


def readable(caller: Principal, tenant: str) -> TenantId:
    """Check the name of a tenant and that the caller may read it.

    To an admin, every other tenant is one that does not exist.
    """
    name = parse_tenant(tenant)
    if caller.is_operator:
        return name
    caller.require_everywhere("admin")
    if name != caller.tenant:
        raise TenantNotFound(name)
    return name


def _view(record: TenantRecord) -> TenantView:
    return TenantView(
        tenant=record.tenant,
        revision=record.revision,
        description=record.options.description,
        quotas=QuotasBody(**record.options.quotas.limits()),
        weight=record.options.weight,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
