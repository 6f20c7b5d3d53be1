"""Calls are refused before they are read, each tenant's by its own rows."""

import math
from dataclasses import dataclass, field

import pytest

from peterrec.service.errors import DeadlineExceeded, QueueFull, outcome_of
from peterrec.service.predict.admission import (
    LATELY_S,
    LONGEST_RETRY_S,
    Admission,
    Stay,
    count_rows,
)
from peterrec.service.predict.schemas import MAX_INSTANCES
from peterrec.service.protocol.sender import BATCH, Sender

ACME, BOLT = Sender("acme"), Sender("bolt")
NEVER = math.inf


@dataclass
class Queue:
    """A queue with a number of places for all, and some that each tenant has for itself."""

    max_places: int = 100
    own: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    now: float = 0.0

    def has_room(self, sender: Sender, rows: int) -> bool:
        is_free = sum(self.sent.values()) + rows <= self.max_places
        return is_free or self.of(sender.tenant) + rows <= self.own

    def of(self, tenant: str) -> int:
        return self.sent.get(tenant, 0)

    def clock(self) -> float:
        return self.now


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def admission(queue: Queue) -> Admission:
    return Admission(queue, queue.clock)


def answered_at(
    queue: Queue, admission: Admission, rows_per_s: float, rows: int = 25, seconds: float = 4.0
) -> None:
    """Let a tenant's calls be answered one after the other, at a rate."""
    while queue.now < seconds:
        with admission.admit(ACME, rows, NEVER, size_bytes=100 * rows):
            queue.now += rows / rows_per_s


def begin(admission: Admission, rows: int, sender: Sender = ACME) -> Stay:
    stay = admission.admit(sender, rows, NEVER)
    stay.__enter__()
    return stay


def test_calls_that_are_being_prepared_have_their_places(queue: Queue, admission: Admission):
    first = begin(admission, 60)
    with pytest.raises(QueueFull, match=r"no room for 60 rows; 60 of this sender"):
        admission.admit(ACME, 60, NEVER)
    first.__exit__(None)
    admission.admit(ACME, 60, NEVER)


def test_rows_that_were_sent_are_not_counted_twice(queue: Queue, admission: Admission):
    begin(admission, 60)
    queue.sent[ACME.tenant] = 60
    admission.admit(ACME, 40, NEVER)
    with pytest.raises(QueueFull):
        admission.admit(ACME, 41, NEVER)


def test_a_call_that_never_fits_is_left_to_the_error_that_says_so(admission: Admission):
    admission.admit(ACME, 101, NEVER)


def test_a_head_is_refused_by_the_rows_of_bodies_of_its_size(queue: Queue, admission: Admission):
    answered_at(queue, admission, rows_per_s=100)
    queue.sent[BOLT.tenant] = 60
    admission.check(ACME, 4_000, NEVER)
    with pytest.raises(QueueFull, match="no room for 50 rows"):
        admission.check(ACME, 5_000, NEVER)


def test_before_any_body_was_seen_a_head_is_expected_to_have_one_row(
    queue: Queue, admission: Admission
):
    queue.sent[BOLT.tenant] = 99
    admission.check(ACME, 1_000_000, NEVER)
    queue.sent[BOLT.tenant] = 100
    with pytest.raises(QueueFull):
        admission.check(ACME, 1, NEVER)


def test_another_tenants_full_queue_refuses_nobody_who_has_places_of_its_own(
    queue: Queue, admission: Admission
):
    queue.own = 10
    answered_at(queue, admission, rows_per_s=100)
    begin(admission, 100)
    queue.sent[ACME.tenant] = 100
    with pytest.raises(QueueFull):
        admission.admit(ACME, 1, queue.now + 60)
    admission.admit(BOLT, 10, queue.now + 0.01)


def test_a_call_that_would_wait_beyond_its_deadline_is_refused_at_once(
    queue: Queue, admission: Admission
):
    answered_at(queue, admission, rows_per_s=100)
    begin(admission, 50)  # half a second
    admission.admit(ACME, 1, queue.now + 1.0)
    with pytest.raises(QueueFull, match=r"50 rows wait already, which takes about 0\.5 s"):
        admission.admit(ACME, 1, queue.now + 0.5)


def test_with_nothing_that_waits_no_deadline_is_too_short(queue: Queue, admission: Admission):
    answered_at(queue, admission, rows_per_s=1)
    admission.admit(ACME, 1, queue.now + 0.001)


def test_the_rate_of_few_rows_says_nothing_about_a_peak(queue: Queue, admission: Admission):
    answered_at(queue, admission, rows_per_s=100, rows=1)
    begin(admission, 90)
    admission.admit(ACME, 1, queue.now + 0.1)


def test_a_peak_that_lasts_makes_the_rate_known(queue: Queue, admission: Admission):
    answered_at(queue, admission, rows_per_s=100, rows=1)
    for _ in range(20):
        with admission.admit(ACME, 50, NEVER):
            queue.now += 0.1  # fifty together take as long as ten alone
    begin(admission, 90)
    admission.admit(ACME, 1, queue.now + 0.3)
    with pytest.raises(QueueFull, match=r"90 rows wait already, which takes about 0\.1\d s"):
        admission.admit(ACME, 1, queue.now + 0.2)


def test_time_in_which_nothing_waits_is_no_part_of_the_rate(queue: Queue, admission: Admission):
    answered_at(queue, admission, rows_per_s=100)
    queue.now += 3600
    begin(admission, 50)
    admission.admit(ACME, 1, queue.now + 1.0)
    with pytest.raises(QueueFull):
        admission.admit(ACME, 1, queue.now + 0.5)


def test_a_device_that_restarts_is_not_taken_for_a_slow_one(queue: Queue, admission: Admission):
    answered_at(queue, admission, rows_per_s=100)
    stays = [begin(admission, 10)]
    for _ in range(30):
        queue.now += 0.1
        stays.append(begin(admission, 1))
    for stay in stays:
        stay.__exit__(DeadlineExceeded)
    begin(admission, 30)
    admission.admit(ACME, 1, queue.now + 1.0)


def test_a_call_that_may_be_too_large_is_refused_by_its_head_when_nothing_is_free(
    queue: Queue, admission: Admission
):
    answered_at(queue, admission, rows_per_s=100)
    queue.sent[BOLT.tenant] = 99
    with pytest.raises(QueueFull):
        admission.check(ACME, 1_000_000, NEVER)


def test_failed_calls_do_not_count_as_answered(queue: Queue, admission: Admission):
    answered_at(queue, admission, rows_per_s=100)
    for _ in range(15):
        stay = begin(admission, 10)
        queue.now += 0.1
        stay.__exit__(QueueFull)
    begin(admission, 10)
    with pytest.raises(QueueFull):
        admission.admit(ACME, 1, queue.now + 0.2)


def test_rows_whose_time_ran_out_do_not_count_as_answered(queue: Queue, admission: Admission):
    answered_at(queue, admission, rows_per_s=100)
    for _ in range(15):
        with admission.admit(ACME, 10, NEVER) as stay:
            queue.now += 0.1
            stay.answered = 0
    begin(admission, 10)
    with pytest.raises(QueueFull):
        admission.admit(ACME, 1, queue.now + 0.2)


def test_a_deadline_that_has_passed_is_no_refusal(admission: Admission):
    with pytest.raises(DeadlineExceeded):
        admission.admit(ACME, 1, 0.0)


def test_refused_calls_come_back_one_after_the_other_as_fast_as_the_queue_drains(
    queue: Queue, admission: Admission
):
    answered_at(queue, admission, rows_per_s=100)
    begin(admission, 100)
    seconds = []
    for _ in range(60):
        with pytest.raises(QueueFull) as refused:
            admission.admit(ACME, 10, NEVER)
        seconds.append(refused.value.retry_after_s)
    assert seconds == sorted(seconds)
    assert all(seconds.count(second) in {9, 10, 11} for second in range(2, 6))
    for _ in range(1000):
        with pytest.raises(QueueFull) as refused:
            admission.admit(ACME, 10, NEVER)
    assert refused.value.retry_after_s == LONGEST_RETRY_S
    queue.now += 2 * LONGEST_RETRY_S
    with pytest.raises(QueueFull) as refused:
        admission.admit(ACME, 10, NEVER)
    assert refused.value.retry_after_s == 1


def test_tenants_without_waiting_rows_are_forgotten_when_there_are_many(admission: Admission):
    begin(admission, 5)
    for number in range(5000):
        admission.admit(Sender(f"t{number}"), 1, NEVER)
    assert len(admission._flows) < 2000
    with pytest.raises(QueueFull, match="5 of this sender"):
        admission.admit(ACME, 96, NEVER)


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b'{"history": [1]}', 1),
        (b'{"instances": [{"history": []}, {"history": []}]}', 2),
        (b"{}", 1),
        (b'"history"' * 1000, MAX_INSTANCES),
    ],
)
def test_rows_are_counted_without_decoding(body: bytes, rows: int):
    assert count_rows(body) == rows


def refused(admission: Admission, sender: Sender) -> str:
    with pytest.raises(QueueFull) as raised:
        admission.admit(sender, 80, NEVER)
    return outcome_of(raised.value)


def test_a_flood_beside_a_tenant_that_is_served_is_the_tenants_own(
    queue: Queue, admission: Admission
):
    queue.own = 10
    begin(admission, 60)
    queue.sent[ACME.tenant] = 60
    admission.admit(BOLT, 1, NEVER)
    assert refused(admission, ACME) == "over_share"
    queue.now += LATELY_S + 1  # nobody else has asked for so long
    assert refused(admission, ACME) == "rejected"


def test_a_flood_of_the_only_tenant_is_the_services(queue: Queue, admission: Admission):
    begin(admission, 60)
    queue.sent[ACME.tenant] = 60
    assert refused(admission, ACME) == "rejected"


def test_a_flood_of_which_several_tenants_are_refused_is_the_services(
    queue: Queue, admission: Admission
):
    queue.sent[ACME.tenant] = 60
    admission.admit(BOLT, 1, NEVER)
    assert refused(admission, BOLT) == "rejected"
    assert refused(admission, ACME) == "rejected"
    queue.now += LATELY_S + 1
    admission.admit(BOLT, 1, NEVER)
    assert refused(admission, ACME) == "over_share"


def test_what_cannot_be_answered_in_time_may_be_the_tenants_own(queue: Queue, admission: Admission):
    answered_at(queue, admission, rows_per_s=100)
    begin(admission, 50)
    admission.admit(BOLT, 1, NEVER)
    with pytest.raises(QueueFull, match="too long") as raised:
        admission.admit(ACME, 1, queue.now + 0.1)
    assert outcome_of(raised.value) == "over_share"


def test_only_an_interactive_call_makes_others_give_way(queue: Queue, admission: Admission):
    assert not admission.is_waited_for
    admission.admit(Sender("acme", BATCH), 1, NEVER)
    assert not admission.is_waited_for
    admission.admit(ACME, 1, NEVER)
    assert admission.is_waited_for
    queue.now += LATELY_S
    assert not admission.is_waited_for
