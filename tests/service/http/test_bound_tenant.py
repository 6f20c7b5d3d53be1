"""What a tenant's quotas let through, to the second, by a clock of the test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peterrec.service.errors import AtOnceExceeded, RateExceeded, TooManyRows
from peterrec.service.http.bound_tenant import BoundTenant
from peterrec.service.protocol.quota_table import (
    Bucket,
    Cell,
    Leased,
    QuotaTable,
    ServedTenant,
    name_number,
)

SLOT = 3


class Tenant:
    """A tenant of a worker, for which time passes only when a test says so."""

    def __init__(self, table: QuotaTable, **quotas: int) -> None:
        self.table = table
        self.now = 1000.0
        table.clear(SLOT, name_number("acme"))
        rates = (quotas.get("requests_per_s"),) * 2 + (quotas.get("rows_per_s"),)
        for bucket, rate in zip(Bucket, rates, strict=True):
            if rate:
                table.set_rate(SLOT, bucket, rate, self.now)
        start = table.start_of(SLOT)
        table.numbers[start + Leased.WAITING_ROWS] = quotas.get("waiting_rows", 0)
        served = ServedTenant("acme", SLOT, **quotas)
        self.bound = BoundTenant(table, table.own_cell(), served, lambda: self.now)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def count(self, cell: Cell) -> float:
        return self.table.sum_of(SLOT, cell)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[QuotaTable]:
    table = QuotaTable.open(tmp_path / "quotas", worker_count=2)
    yield table
    table.close()


def refusal(draw: Callable[[], None]) -> RateExceeded:
    with pytest.raises(RateExceeded) as refused:
        draw()
    return refused.value


def test_a_second_of_requests_passes_at_once_and_then_as_many_as_the_rate(table):
    tenant = Tenant(table, requests_per_s=5)
    for _ in range(5):
        tenant.bound.draw_request()
    assert refusal(tenant.bound.draw_request).retry_after_s == 1
    tenant.pass_time(0.19)
    refusal(tenant.bound.draw_request)
    tenant.pass_time(0.01)
    tenant.bound.draw_request()
    refusal(tenant.bound.draw_request)
    assert tenant.count(Cell.REQUESTS) == 6
    assert tenant.count(Cell.REFUSED_REQUESTS) == 3


@pytest.mark.parametrize("rows", [11, 30, 99, 256])
def test_after_the_seconds_that_it_is_told_a_call_passes_and_not_one_second_before(table, rows):
    told = Tenant(table, rows_per_s=10)
    told.bound.draw_request()
    told.bound.draw_rows(rows)
    seconds = refusal(told.bound.draw_request).retry_after_s
    assert seconds == max(1, -(-(rows - 9) // 10))  # until there is one row again
    told.pass_time(seconds - 1)
    refusal(told.bound.draw_request)
    told.pass_time(1)
    told.bound.draw_request()
    told.bound.draw_rows(256)  # whatever its size


def test_a_refused_call_takes_nothing(table):
    tenant = Tenant(table, requests_per_s=2, rows_per_s=10)
    tenant.bound.draw_request()
    tenant.bound.draw_request()
    tenant.bound.draw_rows(10)
    refusal(lambda: tenant.bound.draw_rows(1))  # the second call came while there were rows
    tenant.pass_time(0.1)
    tenant.bound.draw_request()  # by the token that the refused call got back
    refusal(tenant.bound.draw_request)
    assert tenant.count(Cell.REQUESTS) == 2
    assert tenant.count(Cell.ROWS) == 10
    assert tenant.count(Cell.REFUSED_BY_ROWS) == 1


def test_what_a_full_queue_refused_is_given_back(table):
    tenant = Tenant(table, requests_per_s=1, rows_per_s=10)
    for _ in range(3):
        tenant.bound.draw_request()
        tenant.bound.draw_rows(10)
        tenant.bound.give_back(10)
        tenant.bound.release(10)
    assert dict(tenant.bound.predict_fields())[b"ratelimit"] == (
        b'"requests";r=1;t=1, "rows";r=10;t=1'
    )
    assert [tenant.count(cell) for cell in (Cell.REQUESTS, Cell.ROWS, Cell.WAITING_ROWS)] == [0] * 3


def test_rows_of_explanations_are_made_up_for_before_the_next_call(table):
    tenant = Tenant(table, rows_per_s=10)
    tenant.bound.draw_request()
    tenant.bound.draw_rows(1)
    tenant.bound.charge_rows(50)
    assert refusal(tenant.bound.draw_request).retry_after_s == 5  # (1 + 50 - 9) / 10


def test_predictions_and_other_calls_do_not_take_each_others_tokens(table):
    tenant = Tenant(table, requests_per_s=1)
    tenant.bound.draw_request()
    refusal(tenant.bound.draw_request)
    tenant.bound.draw_call()
    refused = refusal(tenant.bound.draw_call)
    assert (b"ratelimit", b'"administration";r=0;t=1') in refused.headers


def test_rows_wait_up_to_the_quota_and_one_call_always_may(table):
    tenant = Tenant(table, waiting_rows=64)
    with pytest.raises(TooManyRows):
        tenant.bound.draw_rows(65)
    table.numbers[table.start_of(SLOT) + Leased.WAITING_ROWS] = 32  # others have the rest
    tenant.bound.draw_rows(64)
    with pytest.raises(AtOnceExceeded) as refused:
        tenant.bound.draw_rows(1)
    assert "64 waiting rows" in refused.value.message
    tenant.bound.release(64)
    tenant.bound.draw_rows(31)
    tenant.bound.draw_rows(1)
    with pytest.raises(AtOnceExceeded):
        tenant.bound.draw_rows(1)
    assert tenant.count(Cell.REFUSED_BY_WAITING_ROWS) == 3


def test_streams_count_with_those_of_other_replicas_until_they_end(table):
    tenant = Tenant(table, streams=2)
    table.numbers[table.start_of(SLOT) + Leased.STREAMS_ELSEWHERE] = 1
    with tenant.bound.stream(), pytest.raises(AtOnceExceeded), tenant.bound.stream():
        pass
    with tenant.bound.stream():
        assert tenant.count(Cell.STREAMS) == 1
    assert tenant.count(Cell.STREAMS) == 0


def test_the_fields_say_what_is_left_as_structured_fields(table):
    tenant = Tenant(table, requests_per_s=5, rows_per_s=100, waiting_rows=64, streams=2)
    tenant.bound.draw_request()
    tenant.bound.draw_rows(30)
    assert dict(tenant.bound.predict_fields()) == {
        b"ratelimit-policy": b'"requests";q=5;w=1, "rows";q=100;qu="rows";w=1, '
        b'"waiting_rows";q=64;qu="rows"',
        b"ratelimit": b'"requests";r=4;t=1, "rows";r=70;t=1, "waiting_rows";r=34',
    }
    assert dict(tenant.bound.call_fields()) == {
        b"ratelimit-policy": b'"administration";q=5;w=1, "streams";q=2;qu="concurrent-requests"',
        b"ratelimit": b'"administration";r=5;t=1, "streams";r=2',
    }


def test_without_a_token_the_window_is_the_time_until_there_is_one(table):
    tenant = Tenant(table, rows_per_s=10)
    tenant.bound.draw_request()
    tenant.bound.draw_rows(48)
    refused = refusal(tenant.bound.draw_request)
    fields = dict(refused.headers)
    assert fields[b"ratelimit"] == b'"rows";r=0;t=4'
    assert refused.retry_after_s == 4
