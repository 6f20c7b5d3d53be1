"""Batches take about as long as they should, whatever a row of the backbone takes."""

import pytest

from peterrec.service.device.batch_size import (
    ALONE_BATCH_S,
    FEWEST_ALONE,
    FEWEST_SHARED,
    MAX_BATCH_BYTES,
    SHARED_BATCH_S,
    BatchSizer,
)


@pytest.mark.parametrize(("is_shared", "seconds"), [(True, SHARED_BATCH_S), (False, ALONE_BATCH_S)])
def test_the_size_of_a_batch_follows_the_rate_of_the_last_ones(
    is_shared: bool, seconds: float
) -> None:
    sizer = BatchSizer(256)
    for rate in (2e6, 5e5):
        for _ in range(60):
            sizer.note(rate / 100, 0.01)
        assert sizer.bounds(is_shared=is_shared).work == pytest.approx(rate * seconds, rel=0.01)


def test_a_batch_has_some_rows_however_slow_the_device_is() -> None:
    sizer = BatchSizer(256, threads=2)
    sizer.note(10, 10.0)
    assert sizer.bounds(is_shared=True).work == 2 * FEWEST_SHARED
    assert sizer.bounds(is_shared=False).work == 2 * FEWEST_ALONE


def test_a_batch_is_bounded_by_rows_and_bytes_from_the_first_one_on() -> None:
    bounds = BatchSizer(64).bounds(is_shared=False)
    assert (bounds.rows, bounds.size, bounds.work) == (64, MAX_BATCH_BYTES, FEWEST_ALONE)


def test_others_fill_less_of_a_short_batch_that_has_all_rows_of_a_sender() -> None:
    sizer = BatchSizer(256)
    sizer.note(1e6, 1.0)
    short, long = sizer.bounds(is_shared=True), sizer.bounds(is_shared=False)
    assert short.work_beside < short.work
    assert long.work_beside > long.work
    assert long.short_work == short.work
