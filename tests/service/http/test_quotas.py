"""What whatever answers a prediction has to call, also without HTTP."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from peterrec.service.errors import RateExceeded
from peterrec.service.http.bound_tenant import BoundTenant
from peterrec.service.http.quotas import TenantQuotas
from peterrec.service.protocol.quota_table import (
    Bucket,
    Cell,
    QuotaTable,
    ServedTenant,
    name_number,
)

SLOT = 1


@dataclass
class Asked:
    """A prediction of some protocol."""

    tenant: str
    rows: int = 0
    bound: BoundTenant | None = None
    waiting_rows: int = 0


@pytest.fixture
def table(tmp_path: Path) -> Iterator[QuotaTable]:
    table = QuotaTable.open(tmp_path / "quotas", worker_count=1)
    table.clear(SLOT, name_number("acme"))
    table.set_rate(SLOT, Bucket.ROWS, 0.001, 0.0)
    yield table
    table.close()


@pytest.fixture
def quotas(table: QuotaTable) -> TenantQuotas:
    quotas = TenantQuotas(table)
    quotas.replace([ServedTenant("acme", SLOT, rows_per_s=1), ServedTenant("other")])
    return quotas


def test_rows_that_a_protocol_did_not_draw_are_drawn_when_it_has_answered(quotas, table):
    call = Asked("acme")
    quotas.draw(call)
    call.rows = 7
    quotas.release(call, is_answered=True)
    assert table.sum_of(SLOT, Cell.ROWS) == 7
    with pytest.raises(RateExceeded):
        quotas.draw(Asked("acme"))


def test_rows_are_drawn_once_and_wait_until_the_answer(quotas, table):
    call = Asked("acme", rows=7)
    quotas.draw(call)
    quotas.admit_rows(call, 7)
    assert table.sum_of(SLOT, Cell.WAITING_ROWS) == 7
    quotas.release(call, is_answered=True)
    assert table.sum_of(SLOT, Cell.WAITING_ROWS) == 0
    assert table.sum_of(SLOT, Cell.ROWS) == 7


def test_a_call_that_was_not_answered_costs_no_rows(quotas, table):
    call = Asked("acme", rows=7)
    quotas.draw(call)
    quotas.release(call, is_answered=False)
    quotas.draw(Asked("acme"))
    assert table.sum_of(SLOT, Cell.ROWS) == 0


def test_of_a_tenant_without_quotas_nothing_is_counted(quotas, table):
    call = Asked("other", rows=7)
    quotas.draw(call)
    quotas.admit_rows(call, 7)
    quotas.release(call, is_answered=True)
    assert (call.bound, call.waiting_rows) == (None, 0)
