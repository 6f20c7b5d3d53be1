"""Leases a replica's shares of tenants' quotas, and says what tenants use of them.

Workers draw from the buckets of ``QuotaTable`` by themselves. Here, on the follower's event loop,
the buckets get their rates: by quotas as the registry has them, and by shares that replicas
exchange in Redis a few times a second. While Redis is away, the last shares hold.
"""

import asyncio
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from peterrec.model.errors import PeterRecError
from peterrec.patches.identity import TenantId
from peterrec.patches.registry.records import Quotas, TenantEntry
from peterrec.patches.registry.shares import LEAST_SHARE, SHARED, Presence, Report, ShareStore, Use
from peterrec.service.protocol.quota_table import (
    CELL_NUMBERS,
    MAX_SLOTS,
    Bucket,
    Cell,
    Leased,
    QuotaTable,
    ServedTenant,
    name_number,
)
from peterrec.service.telemetry.events import Emit, TenantAsked

log = structlog.get_logger()

EXCHANGE_INTERVAL_S = 0.5
"""Seconds between two exchanges of a tenant that somebody asks for."""

IDLE_AT_ONCE = 100
"""Idle tenants that are exchanged each time, in turns: Redis spends 5 µs on each."""

REPORTS_AT_ONCE = 100
"""Tenants of one script, which blocks Redis for half a millisecond."""

SMOOTHING = 0.5
"""Weight of the last interval in a rate; of what was seen before two seconds, 6 % is left."""

IDLE_BELOW = 0.05
"""Calls or rows per second below which a tenant is idle."""

LEAVE_TIMEOUT_S = 1.0
"""Seconds that a stop waits for Redis; otherwise the leases end by themselves."""

ADMITTED = {
    "requests": Cell.REQUESTS,
    "administration": Cell.ADMINISTRATION,
    "rows": Cell.ROWS,
}
"""The cells that count what was admitted, in the order of ``SHARED``."""

REFUSED = {
    "requests": Cell.REFUSED_REQUESTS,
    "administration": Cell.REFUSED_ADMINISTRATION,
    "rows": Cell.REFUSED_BY_ROWS,
    "waiting_rows": Cell.REFUSED_BY_WAITING_ROWS,
    "streams": Cell.REFUSED_STREAMS,
}
"""The cells that count the calls that each quota has refused."""

NOTHING = (0.0,) * CELL_NUMBERS
UNUSED = Use()


@dataclass(slots=True)
class _Bound:
    """A tenant with quotas for requests, and what was last seen of it."""

    quotas: Quotas
    slot: int
    shares: Sequence[float]
    counts: Sequence[float] = NOTHING
    asked: Sequence[float] = (0.0,) * len(SHARED)
    used: Use = UNUSED
    elsewhere: Use = UNUSED

    @property
    def is_idle(self) -> bool:
        return not any(self.asked) and self.used == UNUSED

    @property
    def parts(self) -> list[float]:
        """What was asked for as parts of the quotas, for what has one."""
        quotas = self.quotas
        limits = (
            quotas.requests_per_s,
            quotas.requests_per_s,
            quotas.rows_per_s,
            quotas.waiting_rows,
        )
        return [
            asked / limit if limit else 0.0 for asked, limit in zip(self.asked, limits, strict=True)
        ]


class QuotaKeeper:
    """All tenants with quotas for requests. Lives on the follower's event loop."""

    def __init__(self, table: QuotaTable, shares: ShareStore, emit: Emit) -> None:
        self._table = table
        self._shares = shares
        self._emit = emit
        self._bound: dict[TenantId, _Bound] = {}
        self._slots = table.known()  # also those of a device process before this one
        taken = set(self._slots.values())
        self._free = [slot for slot in range(1, MAX_SLOTS) if slot not in taken]
        self._first_share = 1.0
        self._idle_turn = 0
        self._seen_at = time.monotonic()
        self._is_away = False
        self.revision = 0
        """Revision of the registry that this replica serves, as others are told."""

    async def join(self) -> None:
        """Learn whether there are other replicas, before anything is served."""
        with suppress(PeterRecError):
            replicas, _ = await self._shares.exchange(self._table.replica, ())
            self._first_share = 1.0 if replicas == 1 else LEAST_SHARE

    def place(self, tenants: Mapping[TenantId, TenantEntry]) -> Mapping[str, ServedTenant]:
        """Give each tenant with quotas for requests its slot; return what workers need of these."""
        wanted = {
            each.tenant: each.quotas
            for each in tenants.values()
            if each.quotas.bounds_requests and not each.is_deleted
        }
        for gone in self._bound.keys() - wanted.keys():
            del self._bound[gone]
            self._free.append(self._slots.pop(name_number(gone)))
        for tenant, quotas in wanted.items():
            self._bind(tenant, quotas)
        return {tenant: _served(tenant, bound) for tenant, bound in self._bound.items()}

    def use_of(self, tenant: TenantId) -> Use | None:
        """Return what a tenant uses on all replicas; None if it has no such quotas."""
        bound = self._bound.get(tenant)
        return None if bound is None else bound.used.plus(bound.elsewhere)

    def shares_of(self, tenant: TenantId) -> dict[str, float]:
        """Return this replica's shares of a tenant's quotas; empty if it has none."""
        bound = self._bound.get(tenant)
        return {} if bound is None else dict(zip(SHARED, bound.shares, strict=True))

    async def exchange_regularly(self) -> None:
        """Exchange shares with other replicas, and emit what was counted."""
        while True:
            self._look()
            try:
                await self._exchange(self._chosen())
            except PeterRecError as error:
                if not self._is_away:
                    log.warning("shares_hold", code=error.code)
                self._is_away = True
            else:
                self._is_away = False
            await asyncio.sleep(EXCHANGE_INTERVAL_S)

    async def leave(self) -> None:
        """Give the shares of this replica back."""
        with suppress(PeterRecError, TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await self._shares.leave(self._table.replica)

    def _bind(self, tenant: TenantId, quotas: Quotas) -> None:
        bound = self._bound.get(tenant)
        if bound is None:
            name = name_number(tenant)
            slot = self._slots.get(name)
            shares: Sequence[float] = [self._first_share] * len(SHARED)
            if slot is not None:  # the device process was restarted
                start = self._table.start_of(slot) + Leased.SHARES
                shares = self._table.numbers[start : start + len(SHARED)].tolist()
            elif self._free:
                slot = self._slots[name] = self._free.pop(0)  # the one that is free for longest
                self._table.clear(slot, name)
            else:
                log.error("quota_not_enforced", tenant=tenant, most=MAX_SLOTS)
                return
            (counts,) = self._table.counts([slot]).tolist()
            self._bound[tenant] = bound = _Bound(quotas, slot, shares, counts)
        bound.quotas = quotas
        self._apply(bound)

    def _apply(self, bound: _Bound) -> None:
        """Write a tenant's shares of its quotas for the workers."""
        table, quotas, now = self._table, bound.quotas, time.monotonic()
        numbers, start = table.numbers, table.start_of(bound.slot)
        rates = (quotas.requests_per_s, quotas.requests_per_s, quotas.rows_per_s)
        for place, share in enumerate(bound.shares, start + Leased.SHARES):
            numbers[place] = share
        for bucket, rate, share in zip(Bucket, rates, bound.shares, strict=False):
            if rate is not None:
                table.set_rate(bound.slot, bucket, rate * share, now)
        may_wait = (quotas.waiting_rows or 0) * bound.shares[SHARED.index("waiting_rows")]
        numbers[start + Leased.WAITING_ROWS] = may_wait
        numbers[start + Leased.STREAMS_ELSEWHERE] = bound.elsewhere.streams

    def _look(self) -> None:
        """Read what the workers have counted since the last time."""
        now = time.monotonic()
        seconds, self._seen_at = max(now - self._seen_at, 1e-3), now
        found = self._table.counts([each.slot for each in self._bound.values()]).tolist()
        for (tenant, bound), counts in zip(self._bound.items(), found, strict=True):
            if counts == bound.counts and bound.is_idle:
                continue
            new = [max(0.0, n - was) for n, was in zip(counts, bound.counts, strict=True)]
            bound.counts = counts
            bound.asked = _smoothed(bound.asked, _asked(new, counts, seconds), seconds)
            rates = (
                bound.used.requests_per_s,
                bound.used.administration_per_s,
                bound.used.rows_per_s,
            )
            admitted = _smoothed(rates, [new[cell] for cell in ADMITTED.values()], seconds)
            requests, administration, rows = admitted
            waiting = max(0.0, counts[Cell.WAITING_ROWS])
            bound.used = Use(requests, administration, rows, waiting, counts[Cell.STREAMS])
            self._tell(tenant, new)

    def _tell(self, tenant: TenantId, new: Sequence[float]) -> None:
        admitted = {name: int(new[cell]) for name, cell in ADMITTED.items() if new[cell]}
        refused = {name: int(new[cell]) for name, cell in REFUSED.items() if new[cell]}
        if admitted or refused:
            self._emit(TenantAsked(tenant, admitted, refused))

    def _chosen(self) -> list[TenantId]:
        """Return the tenants to exchange now: those that are asked for, and some of the others."""
        idle = [tenant for tenant, bound in self._bound.items() if bound.is_idle]
        busy = [tenant for tenant, bound in self._bound.items() if not bound.is_idle]
        first = self._idle_turn % max(1, len(idle))
        turn = (idle[first:] + idle[:first])[:IDLE_AT_ONCE]
        self._idle_turn = first + len(turn)
        return busy + turn

    async def _exchange(self, tenants: Sequence[TenantId]) -> None:
        for some in _parts(tenants, REPORTS_AT_ONCE):
            told = {each: self._bound[each] for each in some if each in self._bound}
            reports = [Report(tenant, each.parts, each.used) for tenant, each in told.items()]
            replicas, leases = await self._shares.exchange(
                self._table.replica, reports, Presence(socket.gethostname(), self.revision)
            )
            self._first_share = 1 / replicas
            for (tenant, bound), lease in zip(told.items(), leases, strict=True):
                if self._bound.get(tenant) is bound:  # and was not deleted meanwhile
                    bound.shares, bound.elsewhere = lease.shares, lease.elsewhere
                    self._apply(bound)


def _served(tenant: str, bound: _Bound) -> ServedTenant:
    quotas = bound.quotas
    return ServedTenant(
        tenant,
        bound.slot,
        quotas.requests_per_s,
        quotas.rows_per_s,
        quotas.waiting_rows,
        quotas.streams,
    )


def _smoothed(rates: Sequence[float], counts: Sequence[float], seconds: float) -> tuple[float, ...]:
    """Return the rates per second with a further interval; those that are hardly any are 0."""
    found = [
        (1 - SMOOTHING) * rate + SMOOTHING * count / seconds
        for rate, count in zip(rates, counts, strict=True)
    ]
    return tuple(rate if rate >= IDLE_BELOW else 0.0 for rate in found)


def _asked(
    new: Sequence[float], counts: Sequence[float], seconds: float
) -> tuple[float, float, float, float]:
    """Return what was asked for: what was admitted and refused of each that is ``SHARED``.

    The rows of refused calls are not known. They count as those of the calls that were admitted.
    Of rows that wait it is those that do, for all of the interval, and those that were refused.
    """
    rows_per_call = max(1.0, new[Cell.ROWS] / max(1.0, new[Cell.REQUESTS]))
    refused_calls = new[Cell.REFUSED_BY_ROWS] + new[Cell.REFUSED_BY_WAITING_ROWS]
    requests = new[Cell.REQUESTS] + new[Cell.REFUSED_REQUESTS]
    administration = new[Cell.ADMINISTRATION] + new[Cell.REFUSED_ADMINISTRATION]
    rows = new[Cell.ROWS] + refused_calls * rows_per_call
    waiting = max(0.0, counts[Cell.WAITING_ROWS])
    waiting += new[Cell.REFUSED_BY_WAITING_ROWS] * rows_per_call
    return requests + refused_calls, administration, rows, waiting * seconds


def _parts(tenants: Sequence[TenantId], size: int) -> Iterator[Sequence[TenantId]]:
    """Return parts of a list, and an empty one if there is nothing."""
    for start in range(0, max(1, len(tenants)), size):
        yield tenants[start : start + size]
