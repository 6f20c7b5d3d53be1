"""The file by which the processes of a replica count what tenants ask for."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from peterrec.service.protocol.quota_table import (
    BURST_S,
    Bucket,
    Cell,
    QuotaTable,
    name_number,
)

SLOT = 7


@pytest.fixture
def table(tmp_path: Path) -> Iterator[QuotaTable]:
    table = QuotaTable.open(tmp_path / "quotas", worker_count=2)
    table.clear(SLOT, name_number("acme"))
    yield table
    table.close()


WORKER = """
import sys, time
from pathlib import Path
from peterrec.service.protocol.quota_table import Cell, QuotaTable
table = QuotaTable.open(Path(sys.argv[1]), worker_count=2)
place = table.start_of(7) + table.own_cell()
before = table.numbers[place + Cell.WAITING_ROWS]
table.numbers[place + Cell.WAITING_ROWS] += 3
table.numbers[place + Cell.REQUESTS] += 1
print(place, before, flush=True)
time.sleep(60)
"""


def start_worker(path: Path) -> tuple["subprocess.Popen[str]", str, float]:
    arguments = [sys.executable, "-c", WORKER, str(path)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    place, before = process.stdout.readline().split()
    return process, place, float(before)


def test_workers_have_cells_of_their_own_and_a_new_one_gets_that_of_a_killed_one(table, tmp_path):
    path = tmp_path / "quotas"
    first, place, _ = start_worker(path)
    second, other, _ = start_worker(path)
    assert place != other
    assert table.sum_of(SLOT, Cell.WAITING_ROWS) == 6
    first.kill()
    first.wait()
    third, again, before = start_worker(path)
    assert again == place
    assert before == 0  # what waited ended with the worker
    assert table.sum_of(SLOT, Cell.WAITING_ROWS) == 6
    assert table.counts([SLOT])[0, Cell.REQUESTS] == 3  # what was counted stays
    for process in (first, second, third):
        process.kill()
        process.communicate()


def test_a_bucket_holds_the_tokens_of_a_second_or_one(table):
    now = time.monotonic()
    table.set_rate(SLOT, Bucket.REQUESTS, 10.0, now)
    at = table.start_of(SLOT) + Bucket.REQUESTS
    assert list(table.numbers[at : at + 3]) == pytest.approx([0.1, BURST_S - 0.1, now])
    table.set_rate(SLOT, Bucket.REQUESTS, 0.25, now)
    assert list(table.numbers[at : at + 2]) == [4.0, 0.0]


def test_what_a_bucket_lacks_it_lacks_at_another_rate_too(table):
    now = time.monotonic()
    table.set_rate(SLOT, Bucket.ROWS, 10.0, now)
    at = table.start_of(SLOT) + Bucket.ROWS
    table.numbers[at + 2] = now + 2.0  # 20 tokens
    table.set_rate(SLOT, Bucket.ROWS, 40.0, now)
    assert table.numbers[at + 2] == pytest.approx(now + 0.5)


def test_the_table_outlives_the_process_that_made_it(table, tmp_path):
    again = QuotaTable.open(tmp_path / "quotas", worker_count=2)
    assert again.known() == {name_number("acme"): SLOT}
    assert again.replica == table.replica
    again.close()
