"""The device is shared by work: between tenants by weight, between priorities, and within one."""

from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from peterrec.service.device.queue import BatchBounds, QueuedRow, RowQueue
from peterrec.service.protocol.messages import Row
from peterrec.service.protocol.sender import BATCH, INTERACTIVE, Sender

FAR = 1e9
BATCH_OF_100 = BatchBounds(256, work=100)


class Shop:
    """A queue, and senders that are told apart by the request ids of their rows."""

    def __init__(self, max_places: int = 100_000) -> None:
        self.queue = RowQueue(max_places)
        self._count = 0
        self.senders: dict[int, Sender] = {}
        self.now = 0.0

    def push(self, sender: Sender, rows: int = 1, work: float = 1.0) -> bool:
        """Queue a request; ``work`` is that of each row."""
        self._count += 1
        self.senders[self._count] = sender
        row = Row(1, b"")
        return self.queue.push(
            [QueuedRow(1, self._count, n, row, FAR, self.now, work) for n in range(rows)], sender
        )

    def take(self, bounds: BatchBounds = BATCH_OF_100, now: float = 0.0) -> list[Sender]:
        """Senders of the rows of the next batch, in order."""
        return [self.senders[row.request_id] for row in self.queue.take(bounds, now).rows]

    def given(self, batches: int) -> Counter[str]:
        """Work that each tenant was given in so many batches."""
        before = Counter(self.queue.given_work())
        for _ in range(batches):
            self.take()
        return Counter(self.queue.given_work()) - before


@pytest.fixture
def shop() -> Shop:
    return Shop()


A, B, C = Sender("a"), Sender("b"), Sender("c")


def test_a_row_does_not_wait_behind_the_flood_of_another_tenant(shop: Shop) -> None:
    for _ in range(40):
        shop.push(A, rows=250)
    shop.take()
    shop.push(B)
    assert shop.take()[0] == B


def test_tenants_get_the_same_work_however_many_rows_they_send(shop: Shop) -> None:
    for _ in range(100):
        shop.push(A, rows=250)
        shop.push(B, rows=10)
    given = shop.given(batches=15)
    assert given["b"] == pytest.approx(given["a"], abs=100)


def test_tenants_get_the_same_work_however_much_a_row_of_theirs_takes(shop: Shop) -> None:
    for _ in range(30):
        shop.push(A, rows=100, work=1)
        shop.push(B, rows=100, work=30)
    given = shop.given(batches=40)
    assert given["b"] == pytest.approx(given["a"], rel=0.05)


def test_a_tenant_gets_work_by_its_weight(shop: Shop) -> None:
    shop.queue.set_weights({"a": 3.0})
    for _ in range(100):
        shop.push(A, rows=100)
        shop.push(B, rows=100)
    given = shop.given(batches=40)
    assert given["a"] == pytest.approx(3 * given["b"], rel=0.05)


def test_twenty_tenants_at_once_have_a_jain_index_of_nearly_one(shop: Shop) -> None:
    senders = [Sender(f"t{number}") for number in range(20)]
    for number, sender in enumerate(senders):
        for _ in range(40):
            shop.push(sender, rows=1 + 10 * number, work=1 + number % 7)
    shop.take()
    work = [shop.given(batches=60)[sender.tenant] for sender in senders[3:]]
    assert sum(work) ** 2 / (len(work) * sum(each**2 for each in work)) > 0.99


def test_nobody_saves_up_what_it_did_not_use(shop: Shop) -> None:
    for _ in range(40):
        shop.push(A, rows=250)
    for _ in range(50):
        shop.take()
    for _ in range(10):
        shop.push(B, rows=250)
    given = shop.given(batches=10)
    assert given["a"] == pytest.approx(given["b"], abs=100)


def test_what_a_tenant_was_given_too_much_of_stays_in_its_account(shop: Shop) -> None:
    for _ in range(20):
        shop.push(A, rows=250)
    given: defaultdict[str, float] = defaultdict(float)
    for _ in range(40):  # one row at a time, each as large as ten batches
        if not shop.queue.places.of("b"):
            shop.push(B, work=1000)
        for tenant, work in shop.given(batches=1).items():
            given[tenant] += work
    assert given["b"] <= given["a"] + 1000


def test_a_batch_has_no_more_work_and_bytes_than_its_bounds_but_one_row_at_least(
    shop: Shop,
) -> None:
    shop.push(A, rows=10, work=40)
    assert len(shop.take(BatchBounds(256, work=100))) == 2
    assert len(shop.take(BatchBounds(256, work=10))) == 1
    row = QueuedRow(1, 99, 0, Row(1, b""), FAR, 0.0, 1.0, size=60)
    shop.queue.take(BatchBounds(256), 0.0)
    shop.queue.push([row, row, row], A)
    assert len(shop.queue.take(BatchBounds(256, size=130), 0.0).rows) == 2
    assert len(shop.queue.take(BatchBounds(256, size=1), 0.0).rows) == 1


def test_others_fill_a_batch_that_has_all_rows_of_a_sender_up_to_a_smaller_bound(
    shop: Shop,
) -> None:
    for _ in range(3):
        shop.push(A, rows=250)
    short = BatchBounds(256, work=100, work_beside=40)
    assert len(shop.take(short)) == 100
    shop.push(B, rows=5)
    assert Counter(shop.take(short)) == {B: 5, A: 35}
    shop.push(B, rows=45)
    shop.push(C, rows=10)
    assert Counter(shop.take(short)) == {B: 34, C: 10}  # each sender has its turn


def test_interactive_rows_come_first_and_batch_rows_get_a_tenth(shop: Shop) -> None:
    background = Sender("b", BATCH)
    for _ in range(100):
        shop.push(background, rows=100)
    assert set(shop.take()) == {background}
    shop.push(A)
    assert shop.take()[0] == A
    for _ in range(100):
        shop.push(A, rows=100)
    given = shop.given(batches=50)
    assert given["b"] == pytest.approx(0.1 * given.total(), rel=0.1)


def test_batch_rows_of_the_same_tenant_do_not_hold_up_its_interactive_ones(shop: Shop) -> None:
    shop.push(Sender("a", BATCH), rows=250)
    shop.push(Sender("a", INTERACTIVE))
    assert shop.take()[0] == Sender("a", INTERACTIVE)


def test_a_small_request_overtakes_the_large_one_before_it_but_not_for_ever(shop: Shop) -> None:
    shop.push(A, rows=250)  # request 1
    first = [shop.queue.take(BatchBounds(10, work=10), 0.0).rows for _ in range(1)]
    assert {row.request_id for row in first[0]} == {1}
    shop.push(A)
    assert shop.queue.take(BatchBounds(10, work=10), 0.0).rows[0].request_id == 2
    ran = set()
    for _ in range(60):  # small ones come all the time
        for _ in range(10):
            shop.push(A)
        ran |= {(row.request_id, row.number) for row in shop.queue.take(BATCH_OF_100, 0.0).rows}
    assert (1, 249) in ran


def test_large_requests_of_one_tenant_are_answered_one_after_the_other(shop: Shop) -> None:
    for _ in range(3):
        shop.push(A, rows=100)
    order = [row.request_id for _ in range(3) for row in shop.queue.take(BATCH_OF_100, 0.0).rows]
    assert order == [1] * 100 + [2] * 100 + [3] * 100


LONG = BatchBounds(10_000, work=1000, short_work=100)
SHORT = BatchBounds(10_000, work=100, work_beside=40, short_work=100)


def run(shop: Shop, seconds: float, asked: Callable[[int], None], start: float = 0.0) -> bool:
    """Serve batches of ten milliseconds; return whether they should be short at the end."""
    steps = int(seconds * 100)
    for step in range(steps):
        now = start + step * 0.01
        shop.now = now
        asked(step)
        shop.take(SHORT if shop.queue.is_shared(now) else LONG, now)
    return shop.queue.is_shared(start + seconds)


def test_batches_are_short_while_a_tenant_that_asks_for_little_is_beside_one_that_floods(
    shop: Shop,
) -> None:
    def flood(step: int) -> None:
        while shop.queue.places.of("a") < 5000:
            shop.push(A, rows=250)

    def both(step: int) -> None:
        flood(step)
        if step % 3 == 0:
            shop.push(B)

    assert not run(shop, 2, flood)  # one tenant alone
    shop.now = 2.0
    shop.push(B)
    assert shop.queue.is_shared(2.0)  # from the first row on
    assert run(shop, 2, both, start=2.0)
    assert not run(shop, 5, flood, start=4.0)  # it has gone


def test_batches_are_short_beside_many_clients_whose_rows_fit_into_one_batch(shop: Shop) -> None:
    def ask(step: int) -> None:
        for _ in range(300):
            shop.push(A)
        shop.push(B)

    assert run(shop, 2, ask)


@pytest.mark.parametrize("rows", [1, 20, 400])
def test_batches_are_long_if_all_tenants_ask_for_about_the_same(shop: Shop, rows: int) -> None:
    senders = [Sender(f"t{number}") for number in range(120 if rows == 1 else 20)]

    def ask(step: int) -> None:
        for sender in senders:
            if shop.queue.places.of(sender.tenant) < rows:
                shop.push(sender, rows=rows)

    assert not run(shop, 2, ask)


def test_batches_are_long_again_when_a_tenant_that_asked_for_little_floods_as_well(
    shop: Shop,
) -> None:
    def flood(sender: Sender) -> None:
        while shop.queue.places.of(sender.tenant) < 5000:
            shop.push(sender, rows=250, work=3)  # no whole number of them fits into a batch

    def modest(step: int) -> None:
        flood(A)
        shop.push(B)

    def both(step: int) -> None:
        flood(A)
        flood(B)

    assert run(shop, 2, modest)
    assert not run(shop, 2, both, start=2.0)


def test_a_full_queue_still_takes_the_rows_of_a_tenant_below_its_share() -> None:
    shop = Shop(max_places=4000)
    while shop.push(A, rows=200):
        pass
    assert shop.queue.places.of("a") == 4000
    assert shop.push(B, rows=200)
    while shop.push(B, rows=200):
        pass
    assert shop.queue.places.of("b") == 2000
    assert not shop.push(A)


def test_shares_of_a_full_queue_go_by_weight_and_hold_the_largest_call_at_least() -> None:
    shop = Shop(max_places=4000)
    shop.queue.set_weights({"b": 3.0, "c": 0.01})
    shop.push(A, rows=4000)
    while shop.push(B, rows=100):
        pass
    assert shop.queue.places.of("b") == 3000
    while shop.push(C, rows=16):
        pass
    assert shop.queue.places.of("c") == 512


def test_batch_calls_leave_places_for_interactive_ones_of_the_same_tenant() -> None:
    shop = Shop(max_places=4000)
    while shop.push(Sender("a", BATCH), rows=100):
        pass
    assert shop.queue.places.of("a") == 3000
    assert shop.push(A, rows=100)


def test_a_deadline_that_has_passed_is_noticed_in_its_turn_and_frees_the_places(
    shop: Shop,
) -> None:
    row = QueuedRow(1, 1, 0, Row(1, b""), 5.0, 0.0)
    shop.queue.push([row, row], A)
    taken = shop.queue.take(BATCH_OF_100, now=6.0)
    assert (len(taken.rows), len(taken.expired)) == (0, 2)
    assert shop.queue.places.total == len(shop.queue) == 0
