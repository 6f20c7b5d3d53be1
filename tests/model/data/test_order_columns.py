"""Order columns keep their exact order in every type, and bounds of any form part them."""

from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peterrec.model.data.interactions import (
    InteractionSource,
    on_one_scale,
    read_events,
    read_histories,
)
from peterrec.model.data.tables import TableSource
from peterrec.model.errors import OrderUnreadable
from tests.model.data.few_events import events
from tests.model.data.recorder import Recorder


def source_of(times: pa.Array) -> InteractionSource:
    """Events whose items are named by their order if the times are given from last to first."""
    count = len(times)
    items = [f"{count - 1 - i:02d}" for i in range(count)]
    table = pa.table({"user_id": ["u"] * count, "item_id": items, "at": times})
    return InteractionSource(TableSource(table), order_column="at")


def order_of(source: InteractionSource) -> tuple[str, ...]:
    return read_histories(source).items_of(0)


def dense(last: int, count: int = 20) -> list[int]:
    """Numbers one apart, from the last to the first."""
    return [last - i for i in range(count)]


DECIMALS = [Decimal(i) for i in dense(2**53 + 40)]
EXACT = {
    "int8": pa.array(dense(10), pa.int8()),
    "int64": pa.array(dense(2**63 - 1)),
    "negative int64": pa.array(dense(-(2**63) + 19)),
    "uint32": pa.array(dense(2**32 - 1), pa.uint32()),
    "uint64": pa.array(dense(2**64 - 1), pa.uint64()),
    "decimal128": pa.array(DECIMALS, pa.decimal128(38, 0)),
    "decimal256": pa.array(DECIMALS, pa.decimal256(60, 0)),
    "decimals beyond 63 bits": pa.array([Decimal(i) for i in dense(2**64 - 1)]),
    "fractions of 30 digits": pa.array(
        [Decimal(i).scaleb(-9) for i in dense(1700000000123456789)], pa.decimal128(30, 9)
    ),
    "floats": pa.array([float(i) for i in dense(2**53 - 1)]),
    "fractions": pa.array([i / 1024 for i in dense(100)]),
    "floats of 32 bits": pa.array([float(i) for i in dense(2**24 - 1)], pa.float32()),
    "floats of 16 bits": pa.array(np.array(dense(2047), np.float16)),
    "seconds": pa.array(dense(1700000000), pa.timestamp("s")),
    "milliseconds": pa.array(dense(1700000000000), pa.timestamp("ms", tz="Europe/Berlin")),
    "microseconds": pa.array(dense(1700000000000000), pa.timestamp("us", tz="UTC")),
    "nanoseconds": pa.array(dense(1700000000123456789), pa.timestamp("ns")),
    "nanoseconds in a zone": pa.array(
        dense(1700000000123456789), pa.timestamp("ns", tz="Asia/Kolkata")
    ),
    "days": pa.array(dense(19000), pa.date32()),
    "days in milliseconds": pa.array([86_400_000 * i for i in dense(19000)], pa.date64()),
    "a dictionary": pa.array(dense(1700000000)).dictionary_encode(),
    "texts of integers": pa.array([str(i) for i in dense(2**63 - 1)]),
    "texts beyond 63 bits": pa.array([str(i) for i in dense(2**64 - 1)]),
    "texts of fractions": pa.array([f"1700000000.{i:09d}" for i in dense(123456789)]),
    "texts of many digits": pa.array([repr(0.1 + i * 2**-40) for i in dense(99)]),
    "texts with signs": pa.array([f"+{i}.5" for i in dense(1000)]),
    "texts without a zero": pa.array([f".{i}" for i in dense(999)]),
    "texts with leading zeros": pa.array([f"0{i}.50" for i in dense(999)]),
    "texts with exponents": pa.array([f"{i}e-3" for i in dense(1000)]),
    "texts of nanoseconds": pa.array([f"2024-01-02T03:04:05.{i:09d}Z" for i in dense(500)]),
    "texts of times": pa.array([f"2024-01-02 03:04:{i:02d}" for i in dense(59)]),
    "texts with zones": pa.array([f"2024-01-02T03:04:{i:02d}+02:00" for i in dense(59)]),
    "texts of minutes": pa.array([f"2024-01-02T03:{i:02d}" for i in dense(59)]),
    "texts in UTC": pa.array([f"2024-01-02 03:04:{i:02d} UTC" for i in dense(59)]),
    "texts of days": pa.array([f"2024-01-{i:02d}" for i in dense(31)]),
    "texts of years to come": pa.array([f"{i}-12-31" for i in dense(9999)]),
    "texts with blanks": pa.array([f" {i} " for i in dense(1000)]),
}


@pytest.mark.parametrize("times", EXACT.values(), ids=EXACT.keys())
def test_values_one_apart_keep_their_order(times):
    names = tuple(f"{i:02d}" for i in range(len(times)))
    assert order_of(source_of(times)) == names
    read = read_events(source_of(times))
    assert read.time is not None
    assert (np.diff(read.time.astype(object)) < 0).all()


INEXACT = {
    "floats that were rounded": (
        pa.array([1.0, 1700000000123456789.0]),
        "row 2, column 'at': .* of type double does not keep its order",
    ),
    "seconds in 32 bits": (pa.array([1700000000.0], pa.float32()), "row 1, .* of type float"),
    "16 bits": (pa.array(np.array([2048], np.float16)), "row 1, .* of type halffloat"),
    "more than 64 bits": (
        pa.array([Decimal(2**70), Decimal(1)], pa.decimal128(38, 0)),
        "more digits than 64 bits hold",
    ),
    "a wide range of digits": (
        pa.array(["0.1234567890123456789", "170000000000.5"]),
        "row 1, .* does not keep its order",
    ),
    "signs and many digits": (pa.array(["+0.12345678901234567891"]), "row 1, column 'at': "),
    "truths": (pa.array([True]), "values of type bool are neither numbers nor times"),
    "times of a day": (pa.array([1], pa.time64("us")), r"values of type time64\[us\] are neither"),
    "infinite": (pa.array([float("inf")]), "inf is neither a number nor a timestamp"),
    "missing": (pa.array([1, None]), "row 2, column 'at': the value is missing"),
    "NaN": (pa.array([1.0, float("nan")]), "row 2, column 'at': the value is missing"),
    "blank": (pa.array(["1", " "]), "row 2, column 'at': the value is missing"),
    "NULL": (pa.array(["1", "NULL"]), "row 2, column 'at': 'NULL' is not of the form of '1'"),
    "a zone for some": (
        pa.array(["2024-01-02T03:04:05Z", "2024-01-02T03:04:05"]),
        "row 2, column 'at': '2024-01-02T03:04:05' is not of the form",
    ),
    "days first": (pa.array(["31.01.2024"]), r"row 1, column 'at': '31\.01\.2024' is neither"),
}


@pytest.mark.parametrize(("times", "message"), INEXACT.values(), ids=INEXACT.keys())
def test_what_keeps_no_exact_order_is_refused(times, message):
    with pytest.raises(OrderUnreadable, match=message) as caught:
        order_of(source_of(times))
    assert caught.value.hint


def files(folder, *columns: pa.Array) -> InteractionSource:
    for number, times in enumerate(columns):
        count = len(times)
        table = pa.table({"user_id": ["u"] * count, "item_id": [f"{number}"] * count, "at": times})
        pq.write_table(table, folder / f"{number}.parquet")
    return InteractionSource(TableSource(folder), order_column="at")


JOINT = {
    "integers of both kinds": (pa.array([2**64 - 1], pa.uint64()), pa.array([5])),
    "decimals of two scales": (
        pa.array([Decimal("1700000000.123456789")], pa.decimal128(30, 9)),
        pa.array([Decimal("1700000000.12")], pa.decimal128(20, 2)),
    ),
    "decimals and integers": (pa.array([Decimal("5.5")]), pa.array([5])),
    "floats and integers": (pa.array([5.5]), pa.array([5])),
    "floats and decimals": (pa.array([5.75]), pa.array([Decimal("5.5")])),
    "texts and integers": (pa.array(["5.5"]), pa.array([5])),
    "micro- and nanoseconds": (
        pa.array([1700000000000000], pa.timestamp("us")),
        pa.array([1699999999999999999], pa.timestamp("ns")),
    ),
    "nanoseconds and days": (
        pa.array([1700000000000000001], pa.timestamp("ns")),
        pa.array([date(2020, 1, 1)]),
    ),
}


@pytest.mark.parametrize(("late", "early"), JOINT.values(), ids=JOINT.keys())
def test_files_of_several_types_are_one_order(tmp_path, late, early):
    assert order_of(files(tmp_path, late, early)) == ("1", "0")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([2**53 + 1]), pa.array([5.5])),
        (pa.array([5.5]), pa.array([2**53 + 1])),
        (pa.array([datetime(9999, 1, 1)]), pa.array([1], pa.timestamp("ns"))),
    ],
)
def test_files_whose_types_no_number_holds_are_refused(tmp_path, one, other):
    with pytest.raises(OrderUnreadable, match=r"column 'at'.* exactly"):
        order_of(files(tmp_path, one, other))


def test_times_with_and_without_a_zone_are_told(tmp_path):
    told = Recorder()
    zoned = pa.array([datetime(2024, 1, 2)], pa.timestamp("us", tz="Europe/Berlin"))
    read_events(files(tmp_path, zoned, pa.array([datetime(2024, 1, 1)])), told)
    assert [text for text in told.notices if "those without are taken as UTC" in text]


NOON = datetime(2024, 1, 2, 12)
EPOCHS = {
    "seconds": pa.array([1704110400, 1704196800, 1704283200]),
    "milliseconds": pa.array([1704110400000, 1704196800000, 1704283200000]),
    "microseconds": pa.array([1704110400000000, 1704196800000000, 1704283200000000]),
    "nanoseconds": pa.array([1704110400000000000, 1704196800000000000, 1704283200000000000]),
    "unsigned seconds": pa.array([1704110400, 1704196800, 1704283200], pa.uint64()),
    "floats": pa.array([1704110400.5, 1704196800.0, 1704283200.0]),
    "decimals": pa.array([Decimal("1704110400.5"), Decimal("1704196800.0"), Decimal("1704283200")]),
    "texts": pa.array(["1704110400", "1704196800", "1704283200"]),
    "timestamps": pa.array([datetime(2024, 1, 1, 12), NOON, datetime(2024, 1, 3, 12)]),
    "days": pa.array([date(2024, 1, 1), date(2024, 1, 3), date(2024, 1, 4)]),
}


@pytest.mark.parametrize("bound", ["2024-01-02 12:00", "2024-01-02T14:00:00+02:00"])
@pytest.mark.parametrize("times", EPOCHS.values(), ids=EPOCHS.keys())
def test_a_date_cuts_times_in_every_unit(times, bound):
    source = source_of(times)
    past, later = replace(source, before=bound), replace(source, since=bound)
    assert (order_of(past), sorted(order_of(later))) == (("02",), ["00", "01"])


def test_the_unit_that_a_date_was_taken_in_is_told():
    told = Recorder()
    read_events(replace(source_of(EPOCHS["milliseconds"]), before="2024-01-02"), told)
    (notice,) = told.notices
    assert "milliseconds since 1970" in notice
    assert "the cut-off 2024-01-02 is 1704153600000" in notice


@pytest.mark.parametrize("times", [[5, 6], [1704110400, 1704110400000], [10**8 - 1, 10**9]])
def test_a_date_among_other_numbers_is_refused(times):
    with pytest.raises(OrderUnreadable, match="is a date, but the numbers in column 'at', from"):
        read_events(replace(source_of(pa.array(times)), before="2024-01-02"))


@pytest.mark.parametrize(
    ("times", "bound", "kept"),
    [
        ([2**53 + 1, 2**53], str(2**53 + 1), 1),
        ([3, 2, 1], "2.5", 2),
        ([3, 2, 1], "1e300", 3),
        ([3.5, 2.5, 1.5], "2.5", 1),
        ([Decimal("2.50"), Decimal("2.49")], "2.495", 1),
    ],
)
def test_a_bound_of_a_number_is_exact(times, bound, kept):
    assert len(order_of(replace(source_of(pa.array(times)), before=bound))) == kept


def test_a_bound_in_nanoseconds_is_exact():
    times = pa.array([1704196800000000002, 1704196800000000001], pa.timestamp("ns"))
    bound = "2024-01-02T12:00:00.000000002"
    assert order_of(replace(source_of(times), before=bound)) == ("00",)


def test_a_column_of_two_units_is_warned_of():
    told = Recorder()
    read_events(source_of(pa.array([1704110400, 1704110401, 1704110400000])), told)
    (notice,) = told.notices
    assert "mix units" in notice
    assert "seconds (2 events) and milliseconds (1 events)" in notice


@pytest.mark.parametrize("times", [[1, 2, 3], [1704110400, 1704110401], [2**40, 1, 1704110400]])
def test_other_numbers_are_no_mix_of_units(times):
    told = Recorder()
    read_events(source_of(pa.array(times)), told)
    assert told.notices == []


def test_without_an_order_column_the_order_that_is_taken_is_told(tmp_path):
    told = Recorder()
    source = replace(files(tmp_path, pa.array([1]), pa.array([2])), order_column=None)
    read_histories(source, told)
    (notice,) = told.notices
    assert "no order column" in notice
    assert "in the order of the rows, files in the order of their names" in notice


def test_times_of_two_tables_are_compared_on_one_scale():
    one = read_events(source_of(pa.array([1700000000123456789], pa.timestamp("ns"))))
    other = read_events(source_of(pa.array([1700000000123456], pa.timestamp("us"))))
    fine, coarse = on_one_scale(one, other)
    assert fine.time is not None
    assert coarse.time is not None
    assert (fine.time[0], coarse.time[0]) == (1700000000123456789, 1700000000123456000)


def test_numbers_and_timestamps_are_not_compared():
    stamps = read_events(source_of(pa.array([datetime(2024, 1, 1)])))
    with pytest.raises(OrderUnreadable, match=r"timestamps.* but .* numbers"):
        on_one_scale(stamps, events(("u", "a", 1)))
