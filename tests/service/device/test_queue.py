"""The queue hands out rows in a fair order, within its bound, and forgets those nobody wants."""

from peterrec.service.device.queue import BatchBounds, QueuedRow, RowQueue
from peterrec.service.protocol.messages import ITEM_BYTES, ITEMS_PER_ROW, Row

FAR = 1e9


def rows(request_id: int, count: int, deadline: float = FAR, handle: int = 1) -> list[QueuedRow]:
    row = Row(handle, b"")
    return [QueuedRow(1, request_id, n, row, deadline, 0.0) for n in range(count)]


def numbers(taken: list[QueuedRow]) -> list[tuple[int, int]]:
    return [(row.request_id, row.number) for row in taken]


def test_rows_leave_in_the_order_they_came() -> None:
    queue = RowQueue(10)
    queue.push(rows(1, 2))
    queue.push(rows(2, 2))
    assert numbers(queue.take(BatchBounds(3), now=0).rows) == [(1, 0), (1, 1), (2, 0)]
    assert numbers(queue.take(BatchBounds(3), now=0).rows) == [(2, 1)]
    assert len(queue) == 0


def test_a_request_that_does_not_fit_is_refused_whole() -> None:
    queue = RowQueue(3)
    assert queue.push(rows(1, 2))
    assert not queue.push(rows(2, 2))
    assert queue.push(rows(3, 1))
    assert sorted(numbers(queue.take(BatchBounds(9), now=0).rows)) == [(1, 0), (1, 1), (3, 0)]


def test_rows_past_their_deadline_are_separate_and_take_no_place_in_the_batch() -> None:
    queue = RowQueue(10)
    queue.push(rows(1, 2, deadline=5))
    queue.push(rows(2, 2, deadline=50))
    taken = queue.take(BatchBounds(2), now=10)
    assert numbers(taken.expired) == [(1, 0), (1, 1)]
    assert numbers(taken.rows) == [(2, 0), (2, 1)]


def test_rows_of_a_client_that_left_are_dropped_and_free_their_room() -> None:
    queue = RowQueue(3)
    queue.push(rows(1, 3))
    assert queue.cancel(1, 1) == 3
    assert len(queue) == 0
    assert queue.push(rows(2, 3))
    assert numbers(queue.take(BatchBounds(9), now=0).rows) == [(2, 0), (2, 1), (2, 2)]


def test_cancelling_what_already_ran_does_nothing() -> None:
    queue = RowQueue(3)
    queue.push(rows(1, 1))
    queue.take(BatchBounds(1), now=0)
    assert queue.cancel(1, 1) == 0


def test_a_residency_is_waited_for_until_its_last_row_is_taken() -> None:
    queue = RowQueue(9)
    queue.push(rows(1, 2, handle=7))
    assert queue.waited_for() == {7}
    queue.take(BatchBounds(1), now=0)
    assert queue.waited_for() == {7}
    queue.take(BatchBounds(1), now=0)
    assert queue.waited_for() == set()


def test_rows_whose_head_is_evicted_wait_while_others_run() -> None:
    queue = RowQueue(9)
    queue.push(rows(1, 2, handle=7))
    queue.push(rows(2, 1, handle=8))
    assert numbers(queue.take(BatchBounds(9), now=0, evicted={7}).rows) == [(2, 0)]
    assert list(queue.pending) == [7]
    assert not queue.is_runnable
    assert queue.waited_for() == {7}
    assert len(queue) == 2


def test_rows_whose_head_is_reloaded_are_the_next_to_run_in_their_order() -> None:
    queue = RowQueue(9)
    queue.push(rows(1, 2, handle=7))
    queue.take(BatchBounds(9), now=0, evicted={7})
    queue.push(rows(2, 1, handle=8))
    queue.resume(7)
    assert numbers(queue.take(BatchBounds(9), now=0).rows) == [(1, 0), (1, 1), (2, 0)]
    assert len(queue) == 0


def test_pending_rows_expire_at_their_deadline() -> None:
    queue = RowQueue(9)
    queue.push([*rows(1, 1, deadline=5, handle=7), *rows(2, 1, deadline=50, handle=7)])
    queue.take(BatchBounds(9), now=0, evicted={7})
    assert numbers(queue.take(BatchBounds(9), now=10, evicted={7}).expired) == [(1, 0)]
    assert len(queue) == 1


def test_pending_rows_of_a_client_that_left_are_dropped() -> None:
    queue = RowQueue(9)
    queue.push(rows(1, 2, handle=7))
    queue.take(BatchBounds(9), now=0, evicted={7})
    assert queue.cancel(1, 1) == 2
    assert list(queue.pending) == []
    queue.resume(7)
    assert numbers(queue.take(BatchBounds(9), now=1).rows) == []


def test_rows_of_a_head_that_can_not_be_reloaded_are_handed_out_to_be_refused() -> None:
    queue = RowQueue(9)
    queue.push(rows(1, 2, handle=7))
    queue.take(BatchBounds(9), now=0, evicted={7})
    assert numbers(queue.drop_pending(7)) == [(1, 0), (1, 1)]
    assert len(queue) == 0
    assert queue.waited_for() == set()


def long_rows(request_id: int, count: int, items: int) -> list[QueuedRow]:
    """Rows of one user, whose older items they share."""
    row = Row(1, b"", older=bytes(ITEM_BYTES * items))
    return [QueuedRow(1, request_id, n, row, FAR, 0.0) for n in range(count)]


def test_older_items_take_places_in_the_queue_once_for_the_rows_that_share_them() -> None:
    queue = RowQueue(10)
    assert queue.push(long_rows(1, 3, items=5 * ITEMS_PER_ROW))
    assert not queue.push(rows(2, 3))
    queue.take(BatchBounds(2), now=0)
    assert not queue.push(long_rows(3, 1, items=4 * ITEMS_PER_ROW))
    queue.take(BatchBounds(1), now=0)  # the last row that has them
    assert queue.push(long_rows(3, 1, items=9 * ITEMS_PER_ROW))
    assert not queue.push(rows(4, 1))
    assert len(queue) == 1


def test_a_flood_of_long_histories_is_refused_before_it_fills_the_memory() -> None:
    queue = RowQueue(1000)
    taken = sum(queue.push(long_rows(n, 1, items=10_000)) for n in range(1000))
    assert taken == 1000 // (1 + 10_000 // ITEMS_PER_ROW)


def test_cancelled_and_refused_rows_give_back_the_places_of_their_older_items() -> None:
    queue = RowQueue(6)
    queue.push(long_rows(1, 1, items=5 * ITEMS_PER_ROW))
    queue.cancel(1, 1)
    assert queue.push(long_rows(2, 1, items=5 * ITEMS_PER_ROW))
    queue.take(BatchBounds(9), now=0, evicted={1})
    queue.drop_pending(1)
    assert queue.push(rows(3, 6))
