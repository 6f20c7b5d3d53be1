"""Rows as they travel from a worker to the device process."""

import msgspec

from peterrec.service.protocol.messages import (
    ITEM_BYTES,
    ITEMS_PER_ROW,
    Predict,
    RequestRows,
    Row,
    encode,
    places_of,
    to_device,
)

LONG = bytes(range(200)) * 200
ROWS = [
    Row(1, b"new1"),
    Row(2, b"new1", older=LONG),
    Row(3, b"new2", 5, b"8bytes..", b"", older=b"old2"),
    Row(4, b"new1", older=LONG),
]


def test_rows_arrive_as_they_were_and_share_their_older_tokens() -> None:
    message = encode(Predict(9, [RequestRows.of(7, 1.5, ROWS)]))
    assert len(message) < len(LONG) + 200
    arrived = to_device.decode(message)
    assert isinstance(arrived, Predict)
    rows = arrived.requests[0].whole_rows()
    assert rows == ROWS
    assert rows[1].older is rows[3].older


def test_rows_without_older_tokens_travel_as_they_are() -> None:
    request = RequestRows.of(7, 1.5, ROWS[:1])
    assert (request.rows, request.older) == (ROWS[:1], [])
    assert request.whole_rows() == ROWS[:1]


def test_older_tokens_take_places_once_for_all_rows_that_share_them() -> None:
    assert places_of(ROWS[:1]) == 1
    own = bytes(ITEM_BYTES * (2 * ITEMS_PER_ROW + 1))
    rows = [Row(1, b"", older=own), Row(2, b"", older=own), Row(3, b"")]
    assert places_of(rows) == 3 + 3
    others = [msgspec.structs.replace(row, older=bytes(own)[:-1]) for row in rows[:2]]
    assert places_of([*rows, *others]) == 3 + 3 + 2 + 3 + 3
