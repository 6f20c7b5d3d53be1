"""Filters compare values: numbers, truths and times, in text files as in Parquet."""

from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peterrec.model.data.filters import Condition
from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.tables import TableSource, read_parts
from peterrec.model.errors import (
    ColumnMissing,
    FilterMatchesNothing,
    FilterUnreadable,
    ValueTypeInvalid,
)

COLUMNS = {
    "whole": [5, 6, 5, 50],
    "float": [5.0, 6.5, 5.0, 0.5],
    "truth": [True, False, True, False],
    "day": [date(2024, 1, 2), date(2024, 1, 3), date(2024, 1, 2), date(2023, 12, 31)],
    "time": [
        datetime(2024, 1, 2),
        datetime(2024, 1, 2, 5),
        datetime(2024, 1, 2),
        datetime(1970, 1, 1),
    ],
    "large": [2**53 + 1, 2**53, 2**53 + 1, 2**53 + 2],
    "text": ["a", "b", " a ", "5"],
}


def twins(folder):
    """One table as CSV, Parquet and a frame."""
    frame = pd.DataFrame(COLUMNS)
    frame.to_csv(folder / "t.csv", index=False)
    table = pa.table({name: pa.array(values) for name, values in COLUMNS.items()})
    pq.write_table(table, folder / "t.parquet")
    return {"csv": folder / "t.csv", "parquet": folder / "t.parquet", "frame": frame}


@pytest.mark.parametrize("form", ["csv", "parquet", "frame"])
@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("whole=5", [0, 2]),
        ("whole=5.0", [0, 2]),
        ("whole=05", [0, 2]),
        ("whole=5e1", [3]),
        ("whole= 50 ", [3]),
        ("float=5", [0, 2]),
        ("float=5.00", [0, 2]),
        ("float=6.5", [1]),
        ("float=.5", None),
        ("truth=true", [0, 2]),
        ("truth=True", [0, 2]),
        ("truth=FALSE", [1, 3]),
        ("day=2024-01-02", [0, 2]),
        ("day=2024-01-02 00:00:00", [0, 2]),
        ("time=2024-01-02", [0, 2]),
        ("time=2024-01-02T00:00", [0, 2]),
        ("time=2024-01-02 05:00:00", [1]),
        ("time=2024-01-02T07:00:00+02:00", [1]),
        ("large=9007199254740993", [0, 2]),
        ("large=9007199254740993.0", [0, 2]),
        ("text=a", [0, 2]),
        ("text=5.0", [3]),
        ("whole=x", None),
        ("whole=5.5", None),
        ("truth=1", None),
        ("day=2024-01-02 03:00", None),
        ("text=c", None),
    ],
)
def test_twins_have_the_same_rows(tmp_path, form, condition, rows):
    source = TableSource(twins(tmp_path)[form], where=(Condition.parse(condition),))
    if rows is None:
        with pytest.raises(FilterMatchesNothing):
            read_parts(source, ["text"])
    else:
        (part,) = read_parts(source, ["text"])
        assert part.rows.tolist() == rows


TYPED = {
    "decimals": (pa.array([Decimal("5.00"), Decimal("5.01")]), "5"),
    "wide decimals": (pa.array([Decimal(5), Decimal(6)], pa.decimal256(60, 0)), "5.0"),
    "unsigned": (pa.array([2**64 - 1, 1], pa.uint64()), str(2**64 - 1)),
    "narrow floats": (pa.array([4.1, 4.2], pa.float32()), "4.1"),
    "16 bits": (pa.array(np.array([5, 6], np.float16)), "5"),
    "a dictionary": (pa.array(["x", "y"]).dictionary_encode(), "x"),
    "large texts": (pa.array(["True", "False"], pa.large_string()), "true"),
    "text views": (pa.array(["x", "y"], pa.string_view()), "x"),
    "nanoseconds": (pa.array([1, 0], pa.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
    "a zone": (
        pa.array([datetime(2024, 1, 2), datetime(2024, 1, 3)], pa.timestamp("ms", tz="UTC")),
        "2024-01-02",
    ),
    "bytes": (pa.array([b"x", b"y"]), "x"),
}


@pytest.mark.parametrize(("values", "wanted"), TYPED.values(), ids=TYPED.keys())
def test_columns_of_every_type_are_compared_by_value(values, wanted):
    source = TableSource(pa.table({"v": values}), where=(Condition("v", wanted),))
    (part,) = read_parts(source, ["v"])
    assert part.rows.tolist() == [0]


def test_a_missing_value_equals_nothing():
    values = pa.array([1.0, None, float("nan")])
    assert Condition("v", "1").matches(values).to_pylist() == [True, False, False]
    assert Condition("v", "nan").matches(values).to_pylist() == [False] * 3


def test_a_name_with_leading_zeros_is_no_number():
    texts = pa.array(["007", "7", "7.0"])
    assert Condition("v", "7").matches(texts).to_pylist() == [False, True, True]
    assert Condition("v", "007").matches(texts).to_pylist() == [True, True, True]


def test_a_filter_that_matches_nothing_names_values_of_the_column():
    table = pa.table({"user_id": ["u"] * 3, "item_id": ["a"] * 3, "kind": ["buy", "view", "buy"]})
    source = TableSource(table, where=(Condition("kind", "sell"),))
    with pytest.raises(FilterMatchesNothing, match=r"kind=sell\. Column 'kind' has buy, view"):
        read_histories(InteractionSource(source))


def test_filters_that_hold_for_different_rows_are_told_apart():
    table = pa.table({"a": [1, 2], "b": [1, 2]})
    source = TableSource(table, where=(Condition("a", "1"), Condition("b", "2")))
    with pytest.raises(FilterMatchesNothing, match="a=1 and b=2, though each of them holds"):
        read_parts(source, ["a"])


def test_a_filter_of_an_unknown_column_names_the_columns(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text("user_id,item_id\nu,a\n")
    for data in (path, pa.table({"user_id": ["u"], "item_id": ["a"]})):
        source = TableSource(data, where=(Condition("kind", "buy"),))
        with pytest.raises(ColumnMissing, match="no column 'kind', only user_id, item_id"):
            read_parts(source, ["item_id"])


def test_a_column_that_cannot_be_filtered_is_refused():
    source = TableSource(pa.table({"v": [{"a": 1}]}), where=(Condition("v", "1"),))
    with pytest.raises(ValueTypeInvalid, match="column 'v': values of type struct"):
        read_parts(source, ["v"])


@pytest.mark.parametrize("text", ["kind", "=buy"])
def test_a_filter_that_is_no_assignment_is_refused(text):
    with pytest.raises(FilterUnreadable):
        Condition.parse(text)
